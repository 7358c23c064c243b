"""What keeps picks apart: the regulariser of USL, and how far from the truth its sums may be.

It is summed from float64 products, whose rounding error is known.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry import jit
from usl.geometry.neighbors.search import SMALLEST
from usl.geometry.points import (
    BLOCK_ROWS,
    SCRATCH,
    UNIT64,
    Points,
    blocks,
    fold_sum,
    same_bits,
    squared_distances,
)

# The distance given to a pick that is left out of the regulariser, as in the released code.
FAR = 1e10
# Relative error allowed to a term of the regulariser before its distance is computed exactly.
TERM_ERROR = 1e-9
# Elements of a float64 tile: half a second-level cache.
TILE = 1 << 16
# With a smaller share of picks that changed, only what these add is evaluated again.
PARTIAL = 0.5
# So many times as large as a sum the terms that went into it may be.
CANCELLED = 1e3


@dataclass(frozen=True, kw_only=True)
class Regularizer:
    """How picks are kept apart (Eqs. 4 to 6 of the paper; both forms of the released code).

    Attributes
    ----------
    weight : float
        λ, in score = density - λ · R.
    alpha : float
        A pick at squared distance d² adds 1 / d²^alpha to R.
    momentum : float
        m, in R ← m·R + (1-m)·R'.
    rounds : int
        T, rounds of picking; R is refined between them. 1 or less: no regulariser.
    horizon : {"dist", "num"}
        ``dist``: the pick of the image's own cluster, and picks with d² ≥ ``horizon_dist``, are
        left out. ``num``: only the ``horizon_num`` nearest picks count, and among them those at
        distance 0 are left out, or, with ``exclude_same_cluster``, the own cluster's.
        Left out means: counted as if d² were 1e10.
    horizon_dist : float
        A squared distance, in the units of the features.
    horizon_num : int
        A number of picks.
    exclude_same_cluster : bool
        See ``horizon``; for ``num`` only.
    """

    weight: float = 0.5
    alpha: float = 0.5
    momentum: float = 0.9
    rounds: int = 10
    horizon: str = "dist"
    horizon_dist: float = 4.0
    horizon_num: int = 128
    exclude_same_cluster: bool = False

    def __post_init__(self) -> None:
        if self.horizon not in ("dist", "num"):
            raise InputError(f"unknown `horizon` {self.horizon!r}; choose dist or num")
        if self.horizon_num < 1:
            raise InputError(f"`horizon_num` is {self.horizon_num}; choose at least 1")
        for name, value, low, high in (
            ("weight", self.weight, 0.0, 1e6),
            ("alpha", self.alpha, 1e-3, 10.0),
            ("momentum", self.momentum, 0.0, 1.0),
            ("horizon_dist", self.horizon_dist, 1e-30, math.inf),
        ):
            if not low <= value <= high:
                raise InputError(f"`{name}` is {value}; choose {low:g} to {high:g}")


class Penalties:
    """The regulariser R' of all points, for one set of picks after the other.

    Where every pick adds a term of its own, only what those add that changed is computed anew, and
    what they added before is taken away. Where only the nearest picks count, only points are looked
    at again that a pick which changed is, or was, as near to as the last of these.

    A term is within TERM_ERROR of its true value, relatively, so that a sum of terms that were
    added and taken away is within TERM_ERROR of the sum of all of their sizes: that is its error,
    and rounding of the sums (2⁻⁵³ of the same for each addition) is far below. Where that exceeds
    the sum itself CANCELLED times, all terms are computed anew.

    Parameters
    ----------
    points : Points, N of them
    assigned : Tensor (N,), int64, on the device of the points
        Which of the picks is that of the point's cluster, or -1.
    regularizer : Regularizer
    """

    def __init__(self, points: Points, assigned: Tensor, regularizer: Regularizer) -> None:
        self.points, self.assigned, self.reg = points, assigned, regularizer
        self.picks: Tensor | None = None
        self.sums = torch.zeros(len(points), dtype=torch.float64, device=points.device)
        self.terms = self.sums.clone()
        # Distance of the farthest pick that counts.
        self.last = torch.full_like(self.sums, torch.inf)

    def of(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        """R' of every point, and the most by which it may be wrong; both (N,), float64."""
        before, self.picks = self.picks, picks
        changed = torch.arange(len(picks), device=picks.device)
        if before is not None:
            changed = changed[picks != before]
        if before is None or len(changed) > PARTIAL * len(picks):
            self._all(picks)
        elif len(changed) and self.reg.horizon == "num" and self.reg.horizon_num < len(picks):
            near = self._reached(torch.cat([picks[changed], before[changed]]))
            (self.sums[near],) = self._sums(near, self.assigned[near], picks)
            self.terms = self.sums
        elif len(changed):
            self._exchange(before, picks, changed)
        return self.sums, TERM_ERROR * self.terms

    def exact(self, rows: Tensor, picks: Tensor) -> Tensor:
        """R' of ``rows`` from exact distances alone."""
        return _Terms(self.points, self.reg).exact(rows, self.assigned[rows], picks)

    def _all(self, picks: Tensor) -> None:
        (self.sums,) = self._sums(self._rows(), self.assigned, picks)
        self.terms = self.sums

    def _exchange(self, before: Tensor, picks: Tensor, changed: Tensor) -> None:
        """Take away what picks added that are none any more, and add what the new ones do."""
        place = torch.full((len(picks),), -1, device=picks.device)
        place[changed] = torch.arange(len(changed), device=picks.device)
        own = torch.where(self.assigned >= 0, place[self.assigned.clamp_min(0)], -1)
        gained, lost = self._sums(self._rows(), own, picks[changed], before[changed])
        self.sums, self.terms = self.sums + gained - lost, self.terms + gained + lost
        if bool((self.terms > CANCELLED * self.sums).any()):
            # A term far larger than all that is left has taken their digits along.
            self._all(picks)

    def _rows(self) -> Tensor:
        return torch.arange(len(self.points), device=self.assigned.device)

    def _reached(self, changed: Tensor) -> Tensor:
        """Rows of which one of some picks is as near as the last that counts, or almost."""
        rows = self._rows()
        tasks = (
            (self.points.handle, self.reg, rows[a:b], self.last[a:b], changed)
            for a, b in self.points.engine.cut(len(rows))
        )
        return rows[torch.cat(list(self.points.engine.map(_reached, tasks)))]

    def _sums(self, rows: Tensor, own: Tensor, *sets: Tensor) -> list[Tensor]:
        """R' of rows for each set of picks: the sum of 1 / d²^alpha, each term within TERM_ERROR.

        ``own`` (n,) is which of the picks is that of the row's cluster, or -1.
        """
        last = self.last[rows]
        tasks = (
            (self.points.handle, self.reg, rows[a:b], own[a:b], last[a:b], sets)
            for a, b in self.points.engine.cut(len(rows))
        )
        found = list(self.points.engine.map(_sums, tasks))
        *sums, self.last[rows] = (torch.cat(parts) for parts in zip(*found, strict=True))
        return sums


def _sums(
    points: Points,
    regularizer: Regularizer,
    rows: Tensor,
    own: Tensor,
    last: Tensor,
    sets: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """What :meth:`Penalties._sums` gives, and after that the new ``last``."""
    return _Terms(points, regularizer).sums(rows, own, last.clone(), sets)


def _reached(
    points: Points, regularizer: Regularizer, rows: Tensor, last: Tensor, changed: Tensor
) -> Tensor:
    """Which rows :meth:`Penalties._reached` gives, (n,), bool."""
    return _Terms(points, regularizer).reached(rows, last, changed)


class _Terms:
    """What picks add to the regulariser of some points."""

    def __init__(self, points: Points, regularizer: Regularizer) -> None:
        self.points, self.reg = points, regularizer
        # As Points.bound, for float64 products.
        self.error = (points.dim + 16) * UNIT64
        self.compiled = points.device.type == "cpu" and jit.works()

    def exact(self, rows: Tensor, own: Tensor, picks: Tensor) -> Tensor:
        """R' of ``rows`` from exact distances alone."""
        sums, step = [], max(1, SCRATCH // (len(picks) * self.points.dim))
        for start, stop in blocks(len(rows), step):
            distances = squared_distances(
                self.points.exact[rows[start:stop], None], self.points.exact[picks][None]
            )
            counted, _ = self._counted(distances, own[start:stop])
            sums.append(
                fold_sum(same_bits(counted.clamp_min_(SMALLEST), lambda d: d.pow_(-self.reg.alpha)))
            )
        return torch.cat(sums)

    def reached(self, rows: Tensor, last: Tensor, changed: Tensor) -> Tensor:
        """See :meth:`Penalties._reached`."""
        y, y_norms = self._operand(changed)
        near = torch.zeros(len(rows), dtype=torch.bool, device=changed.device)

        def some(rows: Tensor, part: slice, x: Tensor, x_norms: Tensor, tile: Tensor) -> None:
            least = torch.addmm(y_norms, x, y.T, alpha=-2, out=tile).amin(dim=1).add_(x_norms)
            unit = self.points.scale**2
            limit = last[part] * (1 + 1e-9) + 16 * self.error * unit * x_norms
            near[part] = least * unit <= limit

        self._each(rows, len(changed), some)
        return near

    def sums(
        self, rows: Tensor, own: Tensor, last: Tensor, sets: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """See :meth:`Penalties._sums`; after these ``last``, which is overwritten."""
        counted = self._compiled_terms if self.compiled else self._terms
        operands = [self._operand(picks) for picks in sets]
        sums = [torch.empty_like(last) for _ in sets]

        def some(rows: Tensor, part: slice, x: Tensor, x_norms: Tensor, tile: Tensor) -> None:
            for picks, (y, y_norms), to in zip(sets, operands, sums, strict=True):
                torch.addmm(y_norms, x, y.T, alpha=-2, out=tile)
                terms = counted(tile, x_norms, rows, picks, own[part], last[part])
                to[part] = terms.pow_(-self.reg.alpha).sum(dim=1)

        self._each(rows, len(sets[0]), some)
        return *sums, last

    def _each(self, rows: Tensor, columns: int, work: Callable[..., None]) -> None:
        """Call for some rows at a time: which, where they are, they, their squares, and a tile."""
        size = TILE if self.compiled else SCRATCH
        step = max(1, min(BLOCK_ROWS, size // max(columns, self.points.dim)))

        def some(block: tuple[int, int]) -> None:
            which = rows[slice(*block)]
            x = self.points.shifted(self.points.exact[which])
            x_norms = (x * x).sum(dim=1)
            tile = torch.empty(min(step, len(x)), columns, dtype=x.dtype, device=x.device)
            for a, b in blocks(len(x), step):
                part = slice(block[0] + a, block[0] + b)
                work(which[a:b], part, x[a:b], x_norms[a:b], tile[: b - a])

        parts = blocks(len(rows), max(step, SCRATCH // self.points.dim))
        if self.compiled:
            with jit.threads() as pool:
                list(pool.map(some, parts))
        else:
            for block in parts:
                some(block)

    def _operand(self, picks: Tensor) -> tuple[Tensor, Tensor]:
        y = self.points.shifted(self.points.exact[picks])
        return y, (y * y).sum(dim=1)

    def _compiled_terms(
        self,
        tile: Tensor,
        x_norms: Tensor,
        rows: Tensor,
        picks: Tensor,
        own: Tensor,
        last: Tensor,
    ) -> Tensor:
        """:meth:`_terms` by compiled code."""
        from usl.geometry import kernels

        given = (tile, x_norms, own, rows, picks, self.points.exact)
        arguments: Any = [tensor.numpy() for tensor in given]
        arguments += [self.points.scale**2, self.error, self._ratio(), FAR, SMALLEST]
        if self.reg.horizon == "dist":
            arguments.append(self.reg.horizon_dist)
            kernels.within_horizon(*arguments)
            return tile
        m = self._nearest(tile)
        arguments += [m, self.reg.exclude_same_cluster, last.numpy()]
        kernels.nearest_picks(*arguments)
        return tile[:, :m]

    def _ratio(self) -> float:
        """How much larger than its error a squared distance must be for a precise term."""
        return max(1.0, self.reg.alpha) / TERM_ERROR

    def _terms(
        self,
        tile: Tensor,
        x_norms: Tensor,
        rows: Tensor,
        picks: Tensor,
        own: Tensor,
        last: Tensor,
    ) -> Tensor:
        """The distances that count, (n, P) or (n, horizon_num), where left out as FAR.

        Of a tile of ``‖y‖² - 2 x·y``, which is overwritten. What rounding could decide, and what is
        too small for a precise term, is computed exactly.
        """
        distances = tile.add_(x_norms[:, None]).mul_(self.points.scale**2)
        # Error of a distance: at most slack + 2 · error · d² (see kernels.nearest).
        slack = (8 * self.error * self.points.scale**2 * x_norms)[:, None]
        exact = distances <= slack * self._ratio()
        if self.reg.horizon == "dist":
            horizon = self.reg.horizon_dist
            if math.isfinite(horizon):
                exact |= (distances - horizon).abs() <= slack + 4 * self.error * horizon
        elif self.reg.exclude_same_cluster:
            # Whether the own pick is among the nearest must not hang on rounding.
            nearest = distances.topk(self._nearest(distances), dim=1, largest=False).values
            farthest = nearest.amax(dim=1, keepdim=True)
            at_own = distances.gather(1, own[:, None].clamp_min(0))
            exact |= (at_own - farthest).abs() <= 2 * (slack + 4 * self.error * farthest)
        self._replace(distances, exact, rows, picks)
        counted, last[:] = self._counted(distances, own)
        return counted.clamp_min_(SMALLEST)

    def _counted(self, distances: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The distances that count, as :meth:`_terms`, and the largest of those before."""
        assigned = own[:, None]
        if self.reg.horizon == "dist":
            distances[distances >= self.reg.horizon_dist] = FAR
            has = own >= 0
            distances[has] = distances[has].scatter(1, assigned[has], FAR)
            return distances, distances.amax(dim=1)
        nearest = distances.topk(self._nearest(distances), dim=1, largest=False).values
        last = nearest.amax(dim=1)
        if not self.reg.exclude_same_cluster:
            nearest[nearest == 0] = FAR
            return nearest, last
        # The nearest picks, equal distances in pick order; the own cluster's is moved far away.
        at_own = distances.gather(1, assigned.clamp_min(0))
        at_own = torch.where(assigned >= 0, at_own, torch.inf)
        picks = torch.arange(distances.shape[1], device=assigned.device)
        before = (distances < at_own) | ((distances == at_own) & (picks < assigned))
        among = before.sum(dim=1) < nearest.shape[1]
        same = (nearest == at_own).to(torch.int8)
        first = (same.cumsum(dim=1) == 1) & (same == 1) & among[:, None]
        return nearest.masked_fill_(first, FAR), last

    def _replace(self, distances: Tensor, exact: Tensor, rows: Tensor, picks: Tensor) -> None:
        who, which = exact.nonzero(as_tuple=True)
        step = max(1, SCRATCH // self.points.dim)
        for a in range(0, len(who), step):
            i, p = who[a : a + step], which[a : a + step]
            distances[i, p] = squared_distances(
                self.points.exact[rows[i]], self.points.exact[picks[p]]
            )

    def _nearest(self, distances: Tensor) -> int:
        return min(self.reg.horizon_num, distances.shape[1])
