"""Candidates for neighbours on a CPU: each pair of blocks is multiplied once, read in the cache.

What a product leaves in the cache is compared with each point's limit by compiled code, and only
what is below goes into the lists of both points.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry import kernels
from usl.geometry.jit import threads
from usl.geometry.memory import check_free
from usl.geometry.neighbors.proposal import Proposal
from usl.geometry.points import Bound, Points, blocks
from usl.geometry.products import LANES, Operand, Products, packed

log = logging.getLogger("usl")

# Points of one block, about; a thread works on two blocks at a time.
BLOCK = 1024
# Rows of a tile, which has a block's columns and stays in a second-level cache.
TILE_ROWS = 256
# Points that the first limits are read off: so many, or one of so many.
SAMPLE, ONE_OF = 2048, 32
# Lists of some points after the other need not take all the memory that those of all may.
LESS = 32
SEED = 0
# Rows of one proposal.
HANDED_OVER = 4096


def propose(
    points: Points, k: int, memory: int, start: int, stop: int, *, quiet: bool = False
) -> Iterator[Proposal]:
    """Lists of some points with small values, for some blocks of points at a time.

    Parameters
    ----------
    points : Points (N, D), on the CPU
    k : int
    memory : int
        Bytes that lists may take. Where those of all points are asked for, and fit, each pair of
        points is looked at once, for both; else twice.
    start, stop : int
        The points.
    quiet : bool
        Show no progress.
    """
    n = stop - start
    ready = packed(points)
    products, everyone = ready.products, ready.points
    if not quiet:
        log.info("candidates by products of %s", products.name)
    own, order = everyone, ready.order
    if n < len(points):
        # In the same order, so that those near each other are near each other here, too.
        order = order[(order >= start) & (order < stop)]
        own = products.pack(points.host, order)
    limits, capacity = _first_limits(points, products, own, k, quiet)
    whole = own is everyone and 8 * capacity * n <= memory
    columns = _even(everyone.count, BLOCK)
    # Of few rows, each thread has some.
    each = max(TILE_ROWS, -(-n // (2 * torch.get_num_threads())))
    rows = columns if whole else min(columns, _even(n, each))
    check_free(8 * capacity * rows, f"lists for the {k} neighbours of {rows} images")
    spans, others = list(blocks(own.padded, rows)), list(blocks(everyone.padded, columns))
    count = len(spans)
    at_once = count if whole else max(1, memory // LESS // (8 * capacity * rows))
    pairs = count * (count + 1) // 2 if whole else count * len(others)
    with tqdm(total=pairs, desc="neighbours", unit="pair", disable=quiet or None) as bar:
        for first in range(0, count, at_once):
            some = range(first, min(count, first + at_once))
            part = slice(spans[some[0]][0], spans[some[-1]][1])
            lists = _Lists(limits, order, ready.order, part, capacity)

            def work(pair: tuple[int, int], lists: _Lists = lists) -> None:
                (top, bottom), (left, right) = spans[pair[0]], others[pair[1]]
                tile = torch.empty(TILE_ROWS, right - left)
                for a, b in blocks(bottom - top, TILE_ROWS):
                    values = products.values(own, top + a, everyone, left, tile[: b - a])
                    lists.collect(values, top + a, left, both=whole and pair[0] != pair[1])

            with threads() as pool:
                for together in _tournament(count) if whole else _each_with_all(some, len(others)):
                    for _ in pool.map(work, together):
                        bar.update()
            yield from lists.proposals(products.bound(own, everyone))


def _first_limits(
    points: Points, products: Products, own: Operand, k: int, quiet: bool
) -> tuple[np.ndarray, int]:
    """A limit for each of some points, read off others, (n,) float32; how long lists should be.

    It is so high that hardly a point has fewer than k others below its own.
    """
    count, n = own.count, len(points)
    # None of those that fill up the last tile gets a neighbour.
    limits = np.full(own.padded, -np.inf, dtype=np.float32)
    limits[:count] = np.inf
    sampled = min(max(SAMPLE, n // ONE_OF), n) // LANES * LANES
    want = k * sampled / n
    rank = int(want + 2.33 * want**0.5 + 3)
    if rank >= sampled:
        return limits, 64 + 2 * n
    drawn = np.random.RandomState(SEED).choice(n, size=sampled, replace=False)
    sample = products.pack(points.host, torch.from_numpy(drawn))
    groups = LANES
    while groups < 4 * (rank + 1):
        groups *= 2

    def read(rows: tuple[int, int]) -> None:
        start, stop = rows
        width = max(SAMPLE, groups)
        space = torch.empty((stop - start) * width)
        least = np.full((stop - start, groups), np.inf, dtype=np.float32)
        for first, last in blocks(sampled, width):
            tile = space[: (stop - start) * (last - first)].view(stop - start, -1)
            kernels.least_of_groups(products.values(own, start, sample, first, tile), least)
        kernels.rank_limits(least[: count - start], rank, limits[start:stop])

    parts, hidden = list(blocks(own.padded, TILE_ROWS)), quiet or None
    with threads() as pool:
        reading = pool.map(read, parts)
        for _ in tqdm(reading, desc="limits", unit="tile", total=len(parts), disable=hidden):
            pass
    return limits, 64 + int(1.5 * (rank + 1) * n / sampled)


def _even(n: int, size: int) -> int:
    """The size, a multiple of LANES, of blocks of about ``size`` that cover n about evenly."""
    return -(-n // (max(1, round(n / size)) * LANES)) * LANES


class _Lists:
    """The lists of some consecutive points of an order, of points of another order or the same."""

    def __init__(
        self, limits: np.ndarray, order: Tensor, others: Tensor, part: slice, capacity: int
    ) -> None:
        self.offset, self.rows, self.names = part.start, order[part], others.numpy()
        self.limits = limits[part]
        self.entries = np.empty((len(self.limits), capacity), np.int64)
        self.fill = np.zeros(len(self.limits), np.int32)

    def collect(self, values: np.ndarray, row: int, column: int, *, both: bool) -> None:
        where = (row - self.offset, row, column)
        kernels.collect(values, *where, self.limits, both, self.names, self.entries, self.fill)

    def proposals(self, bound: Bound) -> Iterator[Proposal]:
        for a, b in blocks(len(self.rows), HANDED_OVER):
            entries, fill, limits = (
                torch.from_numpy(g[a:b]) for g in (self.entries, self.fill, self.limits)
            )
            yield Proposal(self.rows[a:b], entries, fill, limits, bound)


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


def _each_with_all(own: range, others: int) -> Iterator[list[tuple[int, int]]]:
    """Each of some blocks with every other, in rounds in which no two share a row's block."""
    for j in range(others):
        yield [(i, j) for i in own]
