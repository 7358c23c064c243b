"""Compiled loops where they cannot be kept, and threads that several callers want."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from usl.geometry import jit


def test_several_callers_leave_torchs_threads_as_they_were():
    before = torch.get_num_threads()

    def use(_):
        with jit.threads() as pool:
            assert torch.get_num_threads() == 1
            return list(pool.map(abs, range(3)))

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(use, range(12))) == [[0, 1, 2]] * 12
    assert torch.get_num_threads() == before


def test_after_an_interruption_nothing_more_begins():
    done = []

    def work():
        time.sleep(0.01)
        done.append(1)

    with pytest.raises(KeyboardInterrupt), jit.threads() as pool:
        for _ in range(200):
            pool.submit(work)
        raise KeyboardInterrupt
    finished = len(done)
    time.sleep(0.1)
    assert len(done) == finished < 100
    with jit.threads() as pool:
        assert list(pool.map(abs, [-1])) == [1]


@pytest.mark.slow
def test_without_a_place_to_keep_it_code_is_compiled_all_the_same(tmp_path):
    program = """
import numba.core.caching as caching
caching._CacheLocator.from_function = classmethod(lambda *args: None)
caching.CacheImpl._locator_classes = []
from usl.geometry import jit
assert jit.works()
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
