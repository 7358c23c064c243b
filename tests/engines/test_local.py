import errno
import gc
import os

import pytest
import torch

from usl import InputError
from usl.engines.local import MANY, ROWS, SHARES, Local, ahead


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
    # Of the rest what had begun, two ahead of what was taken.
    assert 3 not in loaded


def test_rows_are_cut_only_where_they_are_many():
    for n in (0, 1, MANY):
        assert Local().cut(n) == Local().steps(n) == [(0, n)]
    steps = Local().steps(MANY + 1)
    assert steps[0] == (0, ROWS) and steps[-1] == (MANY, MANY + 1)
    assert [start for start, _ in steps[1:]] == [stop for _, stop in steps[:-1]]


def test_only_large_arrays_lie_in_files_that_go_with_them(tmp_path):
    engine, folder = Local(memory=SHARES * 4000, folder=tmp_path / "a" / "b"), tmp_path / "a" / "b"
    small = engine.zeros(1000, dtype=torch.float32)
    assert not folder.exists() and small.tolist() == [0] * 1000
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    large = engine.zeros(3, 1001, dtype=torch.float16)
    assert large.shape == (3, 1001) and large.dtype == torch.float16 and not large.any()
    large[2, 1000] = 3
    assert float(large.sum()) == 3 and folder.exists()
    # It has no name, and keeps no more than its own place open.
    assert list(folder.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) <= before + 1
    del large
    assert len(os.listdir("/proc/self/fd")) <= before
    assert not Local().zeros(0, 4, dtype=torch.int64).numel()


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    message = "cannot keep 0.0 GB in .*: No space left on device; make room there, or give more `m"
    with pytest.raises(InputError, match=message):
        Local(memory=0, folder=tmp_path).zeros(9, dtype=torch.int64)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot keep .* in .*/file: "):
        Local(memory=0, folder=tmp_path / "file").zeros(9, dtype=torch.int64)
