"""The nearest centroid of every point: float32 or int16 proposes, float64 decides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from usl.geometry import jit
from usl.geometry.points import (
    BLOCK_ROWS,
    SCRATCH,
    Points,
    blocks,
    first_argmin,
    squared_distances,
)

# Float32 distances of one block: 16 MB, so that they stay in the cache.
ASSIGN_ELEMENTS = 1 << 22
# Terms of the products that a thread makes at a time, about.
TERMS = 1 << 24

# (centroids (C, D) float64, which may be chosen, which are others than before): labels (N,)
Assign = Callable[[Tensor, Tensor, Tensor], Tensor]


def assigner(points: Points) -> Assign:
    """What finds the nearest centroids of these points, again and again.

    It takes the centroids (C, D), float64; which of them may be chosen, (C,), bool; and which are
    others than in the last call, (C,), bool. It gives the nearest of each point, (N,), int64; ties
    go to the lowest index. All are on the device of the points. What may not be chosen in one call,
    because it has no members, may not be chosen later.
    """
    if points.device.type == "cpu" and jit.works():
        return _Compiled(points)
    return lambda centroids, allowed, moved: _by_torch(points, centroids, allowed)


def nearest_centroids(points: Points, centroids: Tensor) -> Tensor:
    """The nearest of centroids (C, D), float64, of each point, (N,), int64, on the CPU."""
    every = torch.ones(len(centroids), dtype=torch.bool, device=points.device)
    return assigner(points)(centroids.to(points.device), every, every).cpu()


class _Compiled:
    """Compares a point with all centroids only where its own has moved, else with those that have.

    The points are in an order in which near ones are together, and mostly in one cluster.
    """

    def __init__(self, points: Points) -> None:
        from usl.geometry.products import packed

        self.points, self.packed = points, packed(points)
        self.labels = np.full(len(points), -1)
        self.values = np.full(len(points), np.inf, dtype=np.float32)
        self.shift = 0.0
        self.norms = points.norms[self.packed.order].numpy()

    def __call__(self, centroids: Tensor, allowed: Tensor, moved: Tensor) -> Tensor:
        from usl.geometry import kernels
        from usl.geometry.products import LANES, ROWS

        products, order = self.packed.products, self.packed.order
        everyone = self.packed.points
        # All that may be chosen; and of these the ones that moved.
        choices = [chosen.nonzero()[:, 0] for chosen in (allowed, allowed & moved)]
        operands = [products.pack(centroids, which) for which in choices]
        bounds = [products.bound(everyone, operand) for operand in operands]
        # Old values are within what was the bound then.
        self.shift = shift = max(self.shift, *(bound.shift for bound in bounds))
        error, underflow = bounds[0].error, bounds[0].underflow
        changed = np.append(moved.numpy(), True)[self.labels]
        unit = max(1, TERMS // (len(choices[0]) * self.points.dim * LANES)) * LANES
        host, means, names = self.points.host.numpy(), centroids.numpy(), order.numpy()

        def some(block: tuple[int, int]) -> None:
            for start, stop in blocks(block[1] - block[0], unit):
                find(block[0] + start, block[0] + stop)

        def find(start: int, stop: int) -> None:
            part = slice(start, min(stop, len(names)))
            stays = not changed[part].any()
            operand = operands[stays]
            if operand.count:
                rows = -(-operand.count // ROWS) * ROWS
                tile = torch.empty(rows, stop - start)
                kernels.nearest(
                    products.values(operand, 0, everyone, start, tile), choices[stays].numpy(),
                    stays, self.labels[part], self.values[part], self.norms[part],
                    host, names[part], means, shift, error, underflow,
                )  # fmt: skip

        with jit.threads() as pool:
            list(pool.map(some, blocks(everyone.padded, max(unit, BLOCK_ROWS // 4))))
        labels = torch.empty(len(names), dtype=torch.int64)
        labels[order] = torch.from_numpy(self.labels)
        return labels


def _by_torch(points: Points, centroids: Tensor, allowed: Tensor) -> Tensor:
    """On any device."""
    fast = points.shifted(centroids).float()
    norms = (fast * fast).sum(dim=1)
    norms[~allowed] = torch.inf
    labels = torch.empty(len(points), dtype=torch.int64, device=points.device)
    size = max(1, min(BLOCK_ROWS, ASSIGN_ELEMENTS // len(centroids)))
    tile = torch.empty(size, len(centroids), device=points.device)
    for start, stop in blocks(len(points), size):
        distances = tile[: stop - start]
        torch.addmm(norms, points.fast[start:stop], fast.T, alpha=-2, out=distances)
        distances += points.norms[start:stop, None]
        nearest = distances.min(dim=1)
        labels[start:stop] = nearest.indices
        within = distances <= _within(points, start, stop, nearest.values)[:, None]
        doubtful = (within.sum(dim=1) > 1).nonzero()[:, 0]
        if len(doubtful):
            labels[start + doubtful] = _settle(
                points, start + doubtful, within[doubtful], centroids
            )
    return labels


def _within(points: Points, start: int, stop: int, best: Tensor) -> Tensor:
    """Up to which float32 value a centroid may in truth be as near as the best seems.

    From ``error · (2r + d)² ≤ error · (8r² + 2d²)``, once for the best and once for the other.
    """
    slack = 8 * points.bound.error * points.norms[start:stop].double() + 2 * points.bound.underflow
    truly = (best.double().clamp_min(0) + slack) / (1 - 2 * points.bound.error)
    return ((1 + 2 * points.bound.error) * truly + slack).float() * (1 + 1e-6)


def _settle(points: Points, rows: Tensor, within: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of rows, by exact distances to those that are ``within`` reach."""
    exact = torch.full(within.shape, torch.inf, dtype=torch.float64, device=within.device)
    who, which = within.nonzero(as_tuple=True)
    step = max(1, SCRATCH // points.dim)
    for a in range(0, len(who), step):
        i, c = who[a : a + step], which[a : a + step]
        exact[i, c] = squared_distances(points.exact[rows[i]], centroids[c])
    return first_argmin(exact)
