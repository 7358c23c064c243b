"""USL: from every cluster one image, dense and far from the other picks (section 3.2).

Images that could be a cluster's best within the error of the regulariser are scored again from
exact distances, so the picks are those of exact arithmetic in float64 for every block size, thread
count and device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.points import Points, as_points, check_budget
from usl.selectors.regularizer import Penalties, Regularizer


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


def check_labelled(labelled: Sequence[int] | Tensor, budget: int, images: int) -> Tensor:
    """Rows whose labels are known, (L,), int64, ascending, once they fit.

    Raises
    ------
    InputError
        What is no row, or fewer other images than the budget.
    """
    given = torch.as_tensor(labelled)
    if given.numel() and (given.is_floating_point() or given.dtype == torch.bool):
        raise InputError(
            f"`labelled` holds {str(given.dtype).removeprefix('torch.')} values; give the numbers "
            "of rows"
        )
    rows: Tensor = torch.unique(given.long())
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


def check_neighbors(k: int, images: int) -> None:
    """Raise InputError unless ``k`` neighbours, the image itself one of them, make a density."""
    fewest = min(2, images)
    if not fewest <= k <= images:
        raise InputError(f"`k` is {k}; choose {fewest} to {images}, the number of images")


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
        self.budget, self.reg = budget, regularizer
        # Picks that stay, after those that are chosen.
        self.labelled = labelled.to(points.device)
        self.density = density.to(points.device, torch.float64)
        self.assigned = assigned.to(points.device)
        self.members = (self.assigned >= 0).nonzero()[:, 0]
        self.penalties = Penalties(points, self.assigned, regularizer)
        self.history: list[Tensor] = []

    def run(self) -> tuple[Tensor, Tensor]:
        """Pick, refine the regulariser, pick again."""
        penalty, doubt = torch.zeros_like(self.density), torch.zeros_like(self.density)
        picks = self._best(penalty, doubt)
        rounds = range(self.reg.rounds - 1)
        for _ in tqdm(rounds, desc="picks", unit="round", delay=2, disable=None):
            self.history.append(torch.cat([picks, self.labelled]))
            new, error = self.penalties.of(self.history[-1])
            penalty, doubt = self._blend(penalty, new), self._blend(doubt, error)
            picks = self._best(penalty, doubt)
        return picks.cpu(), (self.density - self.reg.weight * penalty).cpu()

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
        picks = torch.full((self.budget,), len(self.assigned), device=rows.device)
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
                penalty = self._blend(penalty, self.penalties.exact(rows[rivals], picks))
            scores[rivals] -= self.reg.weight * penalty
        best = torch.full((self.budget,), -torch.inf, dtype=torch.float64, device=rows.device)
        best.scatter_reduce_(0, assigned, scores, "amax")
        return alone | (scores == best[assigned])
