"""USL: from every cluster one image, dense and far from the other picks (section 3.2).

The regulariser is summed from float64 products, whose rounding error is known. Images that could be
a cluster's best within that error are scored again from exact distances, so the picks are those of
exact arithmetic in float64 for every block size, thread count and device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import SMALLEST, find_neighbors
from usl.geometry.points import (
    BLOCK_ROWS,
    SCRATCH,
    UNIT64,
    Points,
    as_points,
    blocks,
    check_budget,
    fold_sum,
    squared_distances,
)

# The distance given to a pick that is left out of the regulariser, as in the released code.
FAR = 1e10
# Relative error allowed to a term of the regulariser before its distance is computed exactly.
TERM_ERROR = 1e-9
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


@dataclass(frozen=True)
class Picks:
    """One image from each cluster used.

    Attributes
    ----------
    indices : Tensor (B,), int64
        The picks, clusters in index order.
    clusters : Tensor (B,), int64
        The cluster of each pick.
    scores : Tensor (N,), float64
        ``density - λ · R`` of every image in the last round.
    """

    indices: Tensor
    clusters: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Selection:
    """What :func:`select` returns; tensors on the CPU.

    Attributes
    ----------
    picks : Tensor (B,), int64
        Rows of the features worth labelling, clusters in index order.
    clusters : Tensor (N,), int64
        Cluster of every image.
    density : Tensor (N,), float64
        1 / mean squared distance to the K nearest neighbours.
    scores : Tensor (N,), float64
        Density minus the regulariser, in the last round.
    """

    picks: Tensor
    clusters: Tensor
    density: Tensor
    scores: Tensor


def select(
    features: Any,
    budget: int,
    *,
    seed: int = 0,
    k: int = 400,
    iterations: int = 200,
    clusters: int | None = None,
    regularizer: Regularizer | None = None,
    labelled: Sequence[int] | Tensor = (),
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> Selection:
    """Choose the ``budget`` images most worth labelling, with USL.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
        Embeddings of all images; the paper's are L2-normalised.
    budget : int
        B, number of picks, from 1 to N.
    seed : int
        Of the first k-means centroids.
    k : int
        Neighbours that make the density, the image itself included; at most N.
    iterations : int
        Limit of k-means.
    clusters : int, optional
        C ≥ B; default B, and as many more as there are labelled images. The first B clusters with
        members are used, or with ``labelled`` the B largest that none of these is in.
    regularizer : Regularizer, optional
        Default ``Regularizer()``, the paper's values for CIFAR-10.
    labelled : sequence of int
        Rows whose labels are known: their clusters are taken, and new picks keep away from them.
    backend : str
        See :func:`usl.geometry.neighbors.exact.find_neighbors`.
    device : str or torch.device
        Where to compute, unless ``features`` are Points.

    Returns
    -------
    Selection
        With exactly ``budget`` distinct picks.

    Raises
    ------
    InputError
        Bad features, or an option out of range.

    Notes
    -----
    Wang, Lian and Yu, "Unsupervised Selective Labeling for More Effective Semi-Supervised
    Learning", ECCV 2022, section 3.
    """
    points = as_points(features, device)
    known = check_labelled(labelled, budget, len(points))
    wanted = budget + len(known) if clusters is None else clusters
    if wanted < budget + len(known):
        raise InputError(
            f"`clusters` is {wanted}; choose at least {budget + len(known)}, the budget and the "
            "labelled images"
        )
    density = find_neighbors(points, k, backend=backend).density
    needed = budget + len(known)
    grouped = kmeans(points, wanted, seed=seed, iterations=iterations, nonempty=needed)
    reg = regularizer or Regularizer()
    picks = pick(points, density, grouped.labels, budget, reg, labelled=known)
    return Selection(picks.indices, grouped.labels, density, picks.scores)


def check_labelled(labelled: Sequence[int] | Tensor, budget: int, images: int) -> Tensor:
    """Rows whose labels are known, (L,), int64, ascending, once they fit.

    Raises
    ------
    InputError
        A row that is none or comes twice, or fewer other images than the budget.
    """
    rows: Tensor = torch.unique(torch.as_tensor(labelled, dtype=torch.int64))
    if len(rows) and not (int(rows[0]) >= 0 and int(rows[-1]) < images):
        odd = int(rows[0] if rows[0] < 0 else rows[-1])
        raise InputError(f"`labelled` has row {odd}; give rows from 0 to {images - 1}")
    if len(rows):
        others = images - len(rows)
        if not 1 <= budget <= others:
            raise InputError(
                f"a budget of {budget} picks from {others} images without a label; choose 1 to "
                f"{others}"
            )
    check_budget(budget, images)
    return rows


def pick(
    features: Any,
    density: Tensor,
    labels: Tensor,
    budget: int,
    regularizer: Regularizer,
    *,
    labelled: Tensor | None = None,
) -> Picks:
    """Choose one image from each of the first ``budget`` clusters that have members.

    With ``labelled`` images, from the ``budget`` largest clusters that have none of these, in index
    order; of equal ones from the first.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    density : Tensor (N,), float64
        u, from :attr:`Neighbors.density`.
    labels : Tensor (N,), int64
        Clusters, at least 0; numbers without members are passed over.
    budget : int
        B.
    regularizer : Regularizer
    labelled : Tensor (L,), int64, optional
        Images whose labels are known; they count as picks in the regulariser.

    Returns
    -------
    Picks
        On the CPU. Equal scores go to the lowest index.

    Raises
    ------
    InputError
        Lengths that do not fit, or fewer than ``budget`` clusters with members.
    """
    points = as_points(features)
    if not len(points) == len(density) == len(labels):
        raise InputError(
            f"{len(points)} features, {len(density)} densities and {len(labels)} cluster labels; "
            "give as many of each"
        )
    if labels.min() < 0:
        raise InputError("cluster labels below 0; number the clusters from 0")
    sizes = torch.bincount(labels)
    nonempty = sizes.nonzero()[:, 0]
    known = torch.empty(0, dtype=torch.int64) if labelled is None else labelled
    if len(known):
        # Those of labelled images are taken.
        free = nonempty[~torch.isin(nonempty, labels[known])]
        largest = sizes[free].argsort(descending=True, stable=True)[:budget]
        used = free[largest].sort().values
    else:
        used = nonempty[:budget]
    if len(used) < budget:
        raise InputError(f"{len(used)} clusters have members, {budget} are needed")
    # Which of the picks is that of an image's cluster; -1 for a cluster not used.
    rank = torch.full((int(nonempty[-1]) + 1,), -1, dtype=torch.int64)
    rank[used] = torch.arange(budget)
    picker = _Picker(points, density, rank[labels], budget, regularizer, known)
    indices, scores = picker.run()
    return Picks(indices, used, scores)


class _Picker:
    """The rounds of one selection; holds what they share."""

    def __init__(
        self,
        points: Points,
        density: Tensor,
        assigned: Tensor,
        budget: int,
        regularizer: Regularizer,
        labelled: Tensor,
    ) -> None:
        self.points, self.budget, self.reg = points, budget, regularizer
        # Picks that stay, after those that are chosen.
        self.labelled = labelled.to(points.device)
        self.count = budget + len(labelled)
        self.density = density.to(points.device, torch.float64)
        self.assigned = assigned.to(points.device)
        self.members = (self.assigned >= 0).nonzero()[:, 0]
        self.history: list[Tensor] = []
        # As Points.error, for float64 products.
        self.error = (points.dim + 16) * UNIT64

    def run(self) -> tuple[Tensor, Tensor]:
        """Pick, refine the regulariser, pick again.

        Where every pick adds a term of its own, only what those add that changed is computed
        anew. The error of a sum is then that of all terms that ever went into it, or out.
        """
        penalty, doubt = torch.zeros_like(self.density), torch.zeros_like(self.density)
        new, terms = torch.zeros_like(penalty), torch.zeros_like(penalty)
        picks = self._best(penalty, doubt)
        for _ in range(self.reg.rounds - 1):
            together = torch.cat([picks, self.labelled])
            before = self.history[-1] if self.history else None
            self.history.append(together)
            changed = torch.arange(self.count, device=self.points.device)
            if before is not None and self.reg.horizon == "dist":
                changed = changed[together != before]
            if before is None or self.reg.horizon == "num" or len(changed) > PARTIAL * self.count:
                new = self._all_penalties(together)
                terms = new
            elif len(changed):
                gained = self._all_penalties(together, changed)
                lost = self._all_penalties(before, changed)
                new, terms = new + gained - lost, terms + gained + lost
                if bool((terms > CANCELLED * new).any()):
                    # A term far larger than all that is left has taken their digits along.
                    new = terms = self._all_penalties(together)
            penalty = self._blend(penalty, new)
            doubt = self._blend(doubt, TERM_ERROR * terms)
            picks = self._best(penalty, doubt)
        return picks.cpu(), (self.density - self.reg.weight * penalty).cpu()

    def _all_penalties(self, picks: Tensor, which: Tensor | None = None) -> Tensor:
        """R' of all rows, (N,), or the part of it that some of the picks add."""
        own = self.assigned
        if which is not None:
            place = torch.full((self.count,), -1, device=picks.device)
            place[which] = torch.arange(len(which), device=picks.device)
            own = torch.where(own >= 0, place[own.clamp_min(0)], -1)
            picks = picks[which]
        parts = []
        step = max(1, min(BLOCK_ROWS, SCRATCH // max(len(picks), self.points.dim)))
        for start, stop in blocks(len(self.points), step):
            rows = torch.arange(start, stop, device=self.points.device)
            parts.append(self._penalty(rows, picks, own[start:stop]))
        return torch.cat(parts)

    def _blend(self, old: Tensor, new: Tensor) -> Tensor:
        return self.reg.momentum * old + (1 - self.reg.momentum) * new

    def _best(self, penalty: Tensor, doubt: Tensor) -> Tensor:
        """The best-scored image of each used cluster; what rounding could decide is settled.

        ``doubt`` (N,) bounds the error of the penalties.
        """
        rows = self.members
        assigned = self.assigned[rows]
        pull = self.reg.weight * penalty[rows]
        scores = self.density[rows] - pull
        doubt = 2 * self.reg.weight * doubt[rows]
        best = torch.full((self.budget,), -torch.inf, dtype=torch.float64, device=rows.device)
        best.scatter_reduce_(0, assigned, scores - doubt, "amax")
        rows = rows[scores + doubt >= best[assigned]]
        rows = rows[self._exact_best(rows)]
        picks = torch.full((self.budget,), len(self.points), device=rows.device)
        return picks.scatter_reduce_(0, self.assigned[rows], rows, "amin")

    def _exact_best(self, rows: Tensor) -> Tensor:
        """Which of ``rows`` have their cluster's best score, from exact distances."""
        assigned = self.assigned[rows]
        alone = torch.bincount(assigned, minlength=self.budget)[assigned] == 1
        scores = self.density[rows].clone()
        rivals = (~alone).nonzero()[:, 0]
        if self.history and len(rivals):
            penalty = torch.zeros(len(rivals), dtype=torch.float64, device=rows.device)
            for picks in self.history:
                penalty = self._blend(penalty, self._exact_penalty(rows[rivals], picks))
            scores[rivals] -= self.reg.weight * penalty
        best = torch.full((self.budget,), -torch.inf, dtype=torch.float64, device=rows.device)
        best.scatter_reduce_(0, assigned, scores, "amax")
        return alone | (scores == best[assigned])

    def _exact_penalty(self, rows: Tensor, picks: Tensor) -> Tensor:
        """R' of ``rows`` from exact distances alone."""
        parts = []
        for part in torch.split(rows, max(1, SCRATCH // (self.count * self.points.dim))):
            distances = self._exact_distances(part[:, None], picks[None])
            parts.append(fold_sum(self._terms(distances, self.assigned[part])))
        return torch.cat(parts)

    def _penalty(self, rows: Tensor, picks: Tensor, own: Tensor) -> Tensor:
        """R' of ``rows``: the sum over picks of 1 / d²^alpha, each term within TERM_ERROR.

        ``own`` (n,) is which of the picks is that of the row's cluster, or -1.
        """
        points = self.points
        x, y = points.shifted(points.exact[rows]), points.shifted(points.exact[picks])
        x_norms, y_norms = (x * x).sum(dim=1), (y * y).sum(dim=1)
        unit = points.scale**2
        distances = torch.addmm(y_norms, x, y.T, alpha=-2).add_(x_norms[:, None]).mul_(unit)
        # Error of a distance: at most slack + 2 · error · d² (see kmeans._within).
        slack = (8 * self.error * unit * x_norms)[:, None]
        exact = distances <= slack * (max(1.0, self.reg.alpha) / TERM_ERROR)
        if self.reg.horizon == "dist":
            horizon = self.reg.horizon_dist
            exact |= (distances - horizon).abs() <= slack + 4 * self.error * horizon
        elif self.reg.exclude_same_cluster:
            # Whether the own pick is among the nearest must not hang on rounding.
            last = distances.topk(self._nearest(), dim=1, largest=False).values.amax(1, True)
            at_own = distances.gather(1, own[:, None].clamp_min(0))
            exact |= (at_own - last).abs() <= 2 * (slack + 4 * self.error * last)
        self._replace(distances, exact, rows, picks)
        return self._terms(distances, own).sum(dim=1)

    def _replace(self, distances: Tensor, exact: Tensor, rows: Tensor, picks: Tensor) -> None:
        who, which = exact.nonzero(as_tuple=True)
        step = max(1, SCRATCH // self.points.dim)
        for a in range(0, len(who), step):
            i, p = who[a : a + step], which[a : a + step]
            distances[i, p] = self._exact_distances(rows[i], picks[p])

    def _exact_distances(self, rows: Tensor, picks: Tensor) -> Tensor:
        return squared_distances(self.points.exact[rows], self.points.exact[picks])

    def _nearest(self) -> int:
        return min(self.reg.horizon_num, self.count)

    def _terms(self, distances: Tensor, own: Tensor) -> Tensor:
        """What each pick adds to R', from squared distances (n, P), which are overwritten."""
        assigned = own[:, None]
        if self.reg.horizon == "dist":
            distances[distances >= self.reg.horizon_dist] = FAR
            has = (assigned >= 0)[:, 0]
            distances[has] = distances[has].scatter(1, assigned[has], FAR)
        elif not self.reg.exclude_same_cluster:
            distances = distances.topk(self._nearest(), dim=1, largest=False).values
            distances[distances == 0] = FAR
        else:
            distances = self._nearest_but_own(distances, assigned)
        return distances.clamp_min_(SMALLEST).pow_(-self.reg.alpha)

    def _nearest_but_own(self, distances: Tensor, assigned: Tensor) -> Tensor:
        """The nearest picks, equal distances in pick order, the own cluster's moved far away."""
        at_own = distances.gather(1, assigned.clamp_min(0))
        at_own = torch.where(assigned >= 0, at_own, torch.inf)
        picks = torch.arange(distances.shape[1], device=assigned.device)
        before = (distances < at_own) | ((distances == at_own) & (picks < assigned))
        among = before.sum(dim=1) < self._nearest()
        nearest = distances.topk(self._nearest(), dim=1, largest=False).values
        same = (nearest == at_own).to(torch.int8)
        first = (same.cumsum(dim=1) == 1) & (same == 1) & among[:, None]
        return nearest.masked_fill_(first, FAR)
