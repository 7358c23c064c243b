"""Candidates for neighbours on a CPU: each pair of blocks is multiplied once, read in the cache.

The product is torch's; what it leaves in the cache is compared with each point's limit by compiled
code, and only what is below goes into the lists of both points.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry import kernels
from usl.geometry.jit import threads
from usl.geometry.neighbors.proposal import Proposal
from usl.geometry.points import Points, blocks

# Points of one block, about; a thread works on two blocks at a time.
BLOCK = 1024
# Rows of a tile, which has a block's columns and stays in a second-level cache.
TILE_ROWS = 256
# Points that the first limits are read off.
SAMPLE = 2048
SEED = 0
# Rows of one proposal.
HANDED_OVER = 4096


def propose(points: Points, k: int, memory: int) -> Iterator[Proposal]:
    """Lists of all points with small float32 distances, for some blocks of points at a time.

    Parameters
    ----------
    points : Points (N, D), on the CPU
    k : int
    memory : int
        Bytes that lists may take. Where those of all points fit, each pair of points is looked at
        once, for both; else twice.

    Notes
    -----
    One product of D + 2 terms, ``-2 a·b + ‖a‖² · 1 + 1 · ‖b‖²``, is a value. Its terms add up to at
    most (‖a‖ + ‖b‖)² in size, so that it errs by at most (D + 2) u times this (Higham, Accuracy and
    Stability of Numerical Algorithms, §3.1; u = 2⁻²⁴), the rounding of the lengths by u and that of
    the points by 2 u times this: less than ``points.error``.
    """
    n = len(points)
    count = max(1, round(n / BLOCK))
    block = -(-n // (count * kernels.LANES)) * kernels.LANES
    right = _columns(points, count * block)
    sampled = min(max(SAMPLE, n // 64), n) // kernels.LANES * kernels.LANES
    drawn = np.random.RandomState(SEED).choice(n, size=sampled, replace=False)
    want = k * sampled / n
    # So high in the sample that hardly a point has fewer than k others below its first limit.
    rank = int(want + 2.33 * want**0.5 + 3)
    few = rank >= sampled
    capacity = 64 + (2 * n if few else int(1.5 * (rank + 1) * n / sampled))
    whole = 8 * capacity * len(right) <= memory
    at_once = count if whole else max(1, memory // (8 * capacity * block))
    # None of the points that fill up the last block gets a neighbour.
    limits = np.full(len(right), -np.inf, dtype=np.float32)
    limits[:n] = np.inf
    sample = right[drawn].T

    def first_limits(i: int) -> None:
        for start in range(i * block, min(n, (i + 1) * block), TILE_ROWS):
            rows = slice(start, min(n, start + TILE_ROWS))
            kernels.rank_limits((_rows(right[rows]) @ sample).numpy(), rank, limits[rows])

    if not few:
        with threads() as pool:
            list(pool.map(first_limits, range(count)))
    pairs = count * (count + 1) // 2 if whole else count**2
    with tqdm(total=pairs, desc="neighbours", unit="pair", disable=None) as bar:
        for start in range(0, count, at_once):
            own = range(start, min(count, start + at_once))
            lists = _Lists(limits, own, block, capacity)

            def work(pair: tuple[int, int], lists: _Lists = lists) -> None:
                i, j = pair
                tile = torch.empty(TILE_ROWS, block)
                columns = right[j * block : (j + 1) * block].T
                for a in range(i * block, (i + 1) * block, TILE_ROWS):
                    rows = _rows(right[a : min(a + TILE_ROWS, (i + 1) * block)])
                    product = torch.mm(rows, columns, out=tile[: len(rows)])
                    lists.collect(product, a, j * block, both=whole and i != j)

            with threads() as pool:
                for together in _tournament(count) if whole else _each_with_all(own, count):
                    for _ in pool.map(work, together):
                        bar.update()
            yield from lists.proposals(n)


def _columns(points: Points, rows: int) -> Tensor:
    """``(b, 1, ‖b‖²)`` of all points, filled up with points infinitely far away."""
    n, dim = points.fast.shape
    right = torch.zeros(rows, dim + 2)
    right[:n, :dim] = points.fast
    right[:, dim], right[:, dim + 1] = 1, torch.inf
    for start, stop in blocks(n):
        right[start:stop, dim + 1] = points.fast[start:stop].double().square().sum(dim=1)
    return right


def _rows(columns: Tensor) -> Tensor:
    """``(-2 a, ‖a‖², 1)`` of points that are given as columns."""
    rows = columns * -2
    rows[:, -2], rows[:, -1] = columns[:, -1], columns[:, -2]
    return rows


class _Lists:
    """The lists of the points of consecutive blocks."""

    def __init__(self, limits: np.ndarray, blocks: range, block: int, capacity: int) -> None:
        self.offset = blocks.start * block
        rows = len(blocks) * block
        self.limits = limits[self.offset : self.offset + rows]
        self.entries = np.empty((rows, capacity), np.int64)
        self.fill = np.zeros(rows, np.int32)

    def collect(self, tile: Tensor, row: int, column: int, *, both: bool) -> None:
        kernels.collect(
            tile.numpy(), row - self.offset, column, self.limits, both, self.entries, self.fill
        )

    def proposals(self, n: int) -> Iterator[Proposal]:
        stop = min(len(self.fill), n - self.offset)
        for a in range(0, stop, HANDED_OVER):
            part = slice(a, min(a + HANDED_OVER, stop))
            yield Proposal(
                torch.arange(self.offset + part.start, self.offset + part.stop),
                *(torch.from_numpy(a[part]) for a in (self.entries, self.fill, self.limits)),
            )


def _tournament(count: int) -> Iterator[list[tuple[int, int]]]:
    """All pairs of blocks, in rounds in which no block comes twice; first each with itself.

    The circle method of round-robin tournaments.
    """
    yield [(i, i) for i in range(count)]
    players = [*range(count), *([-1] if count % 2 else [])]
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        yield [(min(pair), max(pair)) for pair in pairs if -1 not in pair]
        players = [players[0], players[-1], *players[1:-1]]


def _each_with_all(own: range, count: int) -> Iterator[list[tuple[int, int]]]:
    """Each of some blocks with every block, in rounds in which no two share a row's block."""
    for j in range(count):
        yield [(i, j) for i in own]
