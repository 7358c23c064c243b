import numpy as np
import pytest

from usl import InputError
from usl.shards import Shards


def test_parts_are_kept_for_the_same_source_only(tmp_path, caplog):
    caplog.set_level("INFO", "usl")
    store = Shards(tmp_path / "s", {"k": 3}, [2, 2, 2, 1], "things")
    assert not store.has(2)
    store.save(2, [np.arange(3), np.eye(2)])
    assert store.has(2) and not store.has(1)
    again = Shards(tmp_path / "s", {"k": 3}, [2, 2, 2, 1], "things")
    assert "things: 1 of 4 shards are there already" in caplog.text
    first, second = again.load(2)
    assert first.tolist() == [0, 1, 2] and second.tolist() == np.eye(2).tolist()
    for source, sizes in (({"k": 4}, [2, 2, 2, 1]), ({"k": 4}, [2, 2, 1, 2])):
        store = Shards(tmp_path / "s", source, sizes, "things")
        assert not store.has(2)
        store.save(2, [np.arange(3)])


def test_a_part_of_which_an_array_is_missing_is_not_there(tmp_path, monkeypatch):
    store = Shards(tmp_path / "s", {}, [3], "things")

    def full(path, array):
        if path.name.endswith("-0.npy"):
            raise InputError("no space left")
        path.touch()

    monkeypatch.setattr("usl.shards.save_array", full)
    with pytest.raises(InputError, match="no space left"):
        store.save(0, [np.arange(3), np.arange(3)])
    assert len(list(store.folder.glob("*.npy"))) == 1 and not store.has(0)


def test_a_place_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write .*file/s"):
        Shards(tmp_path / "file" / "s", {}, [3], "things")
