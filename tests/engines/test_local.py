import pytest

from usl import InputError
from usl.engines.local import MANY, ROWS, Local, ahead


def test_two_items_are_loaded_ahead():
    loaded, seen = [], []

    def load(item):
        loaded.append(item)
        if item == 4:
            raise InputError("four")
        return item * 10

    assert list(ahead(load, [])) == []
    blocks = ahead(load, range(9))
    with pytest.raises(InputError, match="four"):
        for block in blocks:
            seen.append(block)
    assert seen == [0, 10, 20, 30] and loaded[:5] == [0, 1, 2, 3, 4] and len(loaded) <= 7
    loaded.clear()
    blocks = ahead(load, range(4))
    assert next(blocks) == 0
    blocks.close()
    assert len(loaded) <= 2


def test_rows_are_cut_only_where_they_are_many():
    for n in (0, 1, MANY):
        assert Local().cut(n) == Local().steps(n) == [(0, n)]
    steps = Local().steps(MANY + 1)
    assert steps[0] == (0, ROWS) and steps[-1] == (MANY, MANY + 1)
    assert [start for start, _ in steps[1:]] == [stop for _, stop in steps[:-1]]
