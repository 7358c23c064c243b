"""The nearest centroid of every point: float32 or int16 proposes, float64 decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry import jit
from usl.geometry.points import (
    BLOCK_ROWS,
    SCRATCH,
    Points,
    blocks,
    first_argmin,
    full_precision,
    squared_distances,
)

if TYPE_CHECKING:
    from usl.geometry.products import Packed

# Float32 distances of one block: 16 MB, so that they stay in the cache.
ASSIGN_ELEMENTS = 1 << 22
# Terms of the products that a thread makes at a time, about.
TERMS = 1 << 24
# Seconds after which progress is shown.
SLOW = 5.0


@dataclass(frozen=True)
class Assigned:
    """What is known of some points, in their order.

    Attributes
    ----------
    labels : Tensor (n,), int64
        The centroid of each; -1 where there is none yet.
    values : Tensor (n,), float32
        The approximate distances to them.
    shift : float
        That of the bound of these.
    """

    labels: Tensor
    values: Tensor
    shift: float = 0.0


class Assigner:
    """Finds the nearest centroids of these points, again and again.

    Parameters
    ----------
    points : Points
    quiet : bool
        Show no progress.
    """

    def __init__(self, points: Points, quiet: bool = False) -> None:
        self.points, self.quiet, engine = points, quiet, points.engine
        self.cuts = engine.cut(len(points))
        # Packed once, wherever that is, for all iterations.
        self.packed = [engine.call(_packed, points.handle, *cut) for cut in self.cuts]
        self.known = [
            Assigned(torch.full((stop - start,), -1), torch.full((stop - start,), torch.inf))
            for start, stop in self.cuts
        ]

    def __call__(self, centroids: Tensor, allowed: Tensor, moved: Tensor) -> Tensor:
        """The nearest of each point, (N,), int64; ties go to the lowest index.

        All are on the device of the points. What may not be chosen in one call, because it has no
        members, may not be chosen later.

        Parameters
        ----------
        centroids : Tensor (C, D), float64
        allowed : Tensor (C,), bool
            Which of them may be chosen.
        moved : Tensor (C,), bool
            Which are others than in the last call.
        """
        engine = self.points.engine
        given = engine.put((centroids, allowed, moved))
        tasks = zip(self.cuts, self.packed, self.known, strict=True)
        self.known = list(
            engine.map(_assign, ((self.points.handle, *task, given, self.quiet) for task in tasks))
        )
        return torch.cat([known.labels for known in self.known])


def nearest_centroids(points: Points, centroids: Tensor) -> Tensor:
    """The nearest of centroids (C, D), float64, of each point, (N,), int64, on the CPU."""
    every = torch.ones(len(centroids), dtype=torch.bool, device=points.device)
    return Assigner(points)(centroids.to(points.device), every, every).cpu()


def _packed(points: Points, start: int, stop: int) -> Packed | None:
    """Some points as :func:`_compiled` takes them; None where torch does without."""
    if points.device.type != "cpu" or not jit.works():
        return None
    from usl.geometry.products import packed

    return packed(points.part(start, stop))


def _assign(
    points: Points,
    cut: tuple[int, int],
    ready: Packed | None,
    known: Assigned,
    given: tuple[Tensor, Tensor, Tensor],
    quiet: bool,
) -> Assigned:
    """What is known of the points of a cut for new centroids."""
    part = points.part(*cut)
    with full_precision():
        if ready is None:
            return Assigned(_by_torch(part, *given[:2]), known.values)
        return _compiled(part, ready, known, *given, quiet)


def _compiled(
    points: Points,
    ready: Packed,
    known: Assigned,
    centroids: Tensor,
    allowed: Tensor,
    moved: Tensor,
    quiet: bool,
) -> Assigned:
    """Compares a point with all centroids only where its own has moved, else with those that have.

    The points are in an order in which near ones are together, and mostly in one cluster.
    """
    from usl.geometry import kernels
    from usl.geometry.products import LANES, ROWS

    products, order, everyone = ready.products, ready.order, ready.points
    # All that may be chosen; and of these the ones that moved.
    choices = [chosen.nonzero()[:, 0] for chosen in (allowed, allowed & moved)]
    operands = [products.pack(centroids, which) for which in choices]
    bounds = [products.bound(everyone, operand) for operand in operands]
    # Old values are within what was the bound then.
    shift = max(known.shift, *(bound.shift for bound in bounds))
    error, underflow = bounds[0].error, bounds[0].underflow
    labels, values = known.labels[order].numpy(), known.values[order].numpy()
    changed = np.append(moved.numpy(), True)[labels]
    unit = max(1, TERMS // (len(choices[0]) * points.dim * LANES)) * LANES
    host, means, names = points.host.numpy(), centroids.numpy(), order.numpy()
    norms = ready.norms.numpy()

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
                stays, labels[part], values[part], norms[part],
                host, names[part], means, shift, error, underflow,
            )  # fmt: skip

    parts = list(blocks(everyone.padded, max(unit, BLOCK_ROWS // 4)))
    bar = tqdm(total=len(parts), desc="nearest", delay=SLOW, leave=False, disable=quiet or None)
    with jit.threads() as pool, bar:
        for _ in pool.map(some, parts):
            bar.update()
    found = Assigned(torch.empty_like(known.labels), torch.empty_like(known.values), shift)
    found.labels[order], found.values[order] = torch.from_numpy(labels), torch.from_numpy(values)
    return found


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
