"""The nearest of some points only, such as picks; on a CPU, by compiled code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from usl.geometry import jit, kernels
from usl.geometry.points import Points, blocks, squared_distances
from usl.geometry.products import LANES, filled_up, packed

# Rows of a tile.
TILE_ROWS = 64
# Tiles of one task.
TILES = 16
# Of a guess, so that it is hardly ever too low.
MORE = 1.01

# (where the rows are, distances (n, k) float64, indices (n, k) int64)
Use = Callable[[Tensor, Tensor, Tensor], None]


def nearest_among(
    points: Points, wanted: Tensor, others: Tensor, k: int, guess: Tensor, use: Use
) -> None:
    """The exact k nearest of some points to each of some rows, handed over a few rows at a time.

    Parameters
    ----------
    points : Points (N, D), on the CPU
    wanted : Tensor (N,), bool
        The rows.
    others : Tensor (P,), int64
        The points that count.
    k : int
        At most P.
    guess : Tensor (N,), float64
        About the squared distance of the k-th; infinity where nothing is known. Only the time
        depends on it.
    use : callable
        Gets rows, their squared distances, and which points these are to, by distance, then by
        index; from several threads.
    """
    ready, columns = packed(points), filled_up(len(others))
    products, everyone = ready.products, ready.points
    operand = products.pack(points.host, others)
    bound = products.bound(everyone, operand)
    names = np.zeros(columns, np.int64)
    names[: len(others)] = others
    host, lengths = points.host.numpy(), points.norms.numpy()
    order, unit = ready.order, points.scale**2
    rest: list[Tensor] = []

    def some(block: tuple[int, int]) -> None:
        tile = torch.empty(TILE_ROWS, columns)
        lists = np.empty((TILE_ROWS, 2 * k + LANES), np.int64)
        for start, stop in blocks(block[1] - block[0], TILE_ROWS):
            a, b = block[0] + start, block[0] + stop
            rows = order[a : min(b, len(order))]
            asked = wanted[rows]
            if not asked.any():
                continue
            n, fill = len(rows), np.zeros(len(rows), np.int32)
            length = points.norms[rows].double().sqrt() * (1 + 1e-6)
            reach = bound.reach(length, MORE * guess[rows] / unit)
            limits = reach.where(asked, -torch.inf).float().numpy()
            values = products.values(everyone, a, operand, 0, tile[: b - a])[:n]
            kernels.collect(values, 0, a, 0, limits, False, names, lists, fill)
            distances, indices = np.empty((n, k)), np.empty((n, k), np.int64)
            settled = np.empty(n, np.bool_)
            kernels.settle(
                host, rows.numpy(), lists, fill, limits, lengths,
                bound.shift, bound.error, bound.underflow, unit, distances, indices, settled,
            )  # fmt: skip
            done = torch.from_numpy(settled)
            use(rows[done], torch.from_numpy(distances)[done], torch.from_numpy(indices)[done])
            rest.append(rows[asked & ~done])

    with jit.threads() as pool:
        list(pool.map(some, blocks(everyone.padded, TILES * TILE_ROWS)))
    left = torch.cat([*rest, others[:0]])
    if guess[left].isfinite().any():
        # Guessed too low.
        wanted = torch.zeros_like(wanted)
        wanted[left] = True
        nearest_among(points, wanted, others, k, torch.full_like(guess, torch.inf), use)
        return
    ascending = others.sort().values
    for row in left:
        # Too alike for the error of values.
        exact = squared_distances(points.host[ascending], points.host[row])
        distances, which = exact.sort(stable=True)
        use(row[None], distances[None, :k], ascending[which[None, :k]])
