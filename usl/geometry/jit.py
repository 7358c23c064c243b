"""Whether compiled loops run here, and threads for them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

import torch

log = logging.getLogger("usl")
_one_at_a_time = threading.Lock()


@cache
def works() -> bool:
    """Whether there is numba, and what it compiles does what it should; said once where not."""
    try:
        from usl.geometry import kernels

        kernels.check()
    except Exception as error:
        log.info("torch does what compiled loops would do faster: they do not run here (%s)", error)
        return False
    return True


@cache
def int16_works() -> bool:
    """Whether products of int16 are faster here, and right; said once where they are wrong."""
    try:
        from usl.geometry import int16

        if not int16.FAST:
            return False
        int16.check()
    except Exception as error:
        log.info(
            "products of float32 stand in for those of int16: they do not run here (%s)", error
        )
        return False
    return True


@cache
def _pool(count: int, process: int) -> ThreadPoolExecutor:
    """Starting threads takes as long as an iteration of k-means, so they are kept."""
    return ThreadPoolExecutor(count)


@contextmanager
def threads() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch has, whose products have one each; for one caller at a time."""
    with _one_at_a_time:
        count = torch.get_num_threads()
        torch.set_num_threads(1)
        # A process that was forked off has none of them.
        pool = _pool(count, os.getpid())
        try:
            yield pool
        except BaseException:
            # Ctrl-C, too, must not wait for what has not begun.
            _pool.cache_clear()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(count)
