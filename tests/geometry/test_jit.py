"""Compiled loops where they cannot be kept, and threads that several callers want."""

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from usl.geometry import int16, jit
from usl.geometry.points import Points
from usl.geometry.products import Int16, products_of


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_several_callers_leave_torchs_threads_as_they_were():
    before = torch.get_num_threads()

    def use(_):
        with jit.threads() as pool:
            assert torch.get_num_threads() == 1
            time.sleep(0.002)
            return list(pool.map(abs, range(3)))

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(use, range(12))) == [[0, 1, 2]] * 12
    assert torch.get_num_threads() == before == 2


@pytest.mark.usefixtures("two_threads")
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


def test_wrong_products_of_int16_are_not_used(monkeypatch, caplog):
    points = Points(np.random.RandomState(0).randn(40, 3))
    jit.int16_works.cache_clear()
    monkeypatch.setattr(int16, "FAST", True)
    monkeypatch.setattr(int16, "quantize", lambda *given: 0.0)
    with caplog.at_level(logging.INFO, "usl"):
        logging.getLogger("usl").propagate = True
        assert [products_of(points).name for _ in range(2)] == ["float32", "float32"]
    jit.int16_works.cache_clear()
    assert caplog.text.count("products of float32 stand in for those of int16") == 1


def test_vectors_that_int16_cannot_hold_are_refused():
    points = Points(np.eye(3))
    with pytest.raises(ValueError, match="longer than the longest of the points"):
        Int16(points).pack(torch.full((1, 3), 3.0), torch.arange(1))


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
