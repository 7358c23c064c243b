"""k-medoids of a kernel: MaxHerding's soft coverage, raised by exchange (Bae et al., ECCV 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.assignment import nearest_centroids
from usl.geometry.distances import distances_to
from usl.geometry.pairs import Gaussian, Settled
from usl.geometry.points import Points, as_points, fold_sum, same_bits
from usl.selectors.farthest import squared_distance_picks
from usl.selectors.maxherding import coverage_gains, soft_coverage

# Limit; digits and made-up features take up to 5.
ROUNDS = 100


def medoid_picks(
    features: Any,
    budget: int,
    *,
    seed: int,
    squared_width: float | None = None,
    rounds: int = ROUNDS,
) -> Tensor:
    """Alternate between groups of images and the medoid of each (arXiv 2407.12212).

    As read here: the paper names a variant of k-medoids that raises the coverage of
    :func:`usl.selectors.maxherding.herding_picks` without being greedy; its steps and start were
    not found. So the start is that of k-means++, not MaxHerding's picks, which would be an
    improvement on another selector. Then each image joins the pick with the largest kernel value,
    the nearest one, and in each group the image takes over that has the largest sum of kernel
    values to the group's images to be covered, until no group changes. That never lowers the
    coverage.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    seed : int
        Of the start, :func:`usl.selectors.farthest.squared_distance_picks`.
    squared_width : float, optional
        As for MaxHerding, and so are the images to be covered.
    rounds : int
        Limit; without any the start is returned.

    Returns
    -------
    Tensor (B,), int64
        In the order of the start. Equally near picks: the first of them gets the image; equal sums
        go to the lowest index. A pick stays in its own group, so none is empty, also of copies; a
        group without an image to be covered keeps its pick.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    picks = squared_distance_picks(points, budget, seed=seed)
    medoid = _Medoid(*soft_coverage(points, squared_width))
    labels = torch.full((len(points),), -1)
    for _ in tqdm(range(rounds), desc="rounds", delay=2, leave=False, disable=None):
        before, labels = labels, _groups(points, picks)
        other = labels != before
        if not other.any():
            break
        for group in sorted({*labels[other].tolist(), *before[other].tolist()} - {-1}):
            picks[group] = medoid.of((labels == group).nonzero()[:, 0], int(picks[group]))
    return picks


def _groups(points: Points, picks: Tensor) -> Tensor:
    """Number of the nearest pick of each image, (N,), int64; a pick's is its own."""
    labels = nearest_centroids(points, points.host[picks].double())
    labels[picks] = torch.arange(len(picks))
    return labels


class _Medoid:
    """Finds the image of a group that covers the group best."""

    def __init__(self, kernel: Gaussian, step: int) -> None:
        self.kernel, self.step, self.points = kernel, step, kernel.pairs.points
        self.settled = Settled(self.points, self._exact)
        self.covered = torch.empty(0, dtype=torch.int64)

    def of(self, members: Tensor, pick: int) -> int:
        """Of members, ascending; ``pick`` where nothing is to be covered."""
        self.covered = members[members % self.step == 0]
        if not len(self.covered):
            return pick
        nothing = torch.zeros(len(self.covered), dtype=torch.float64)
        scores = torch.full((len(self.points),), -torch.inf, dtype=torch.float64)
        scores[members] = coverage_gains(self.kernel, members, self.covered, nothing)
        error = self.kernel.error * len(self.covered)
        return self.settled.best(scores, torch.isfinite(scores), error)

    def _exact(self, image: int) -> float:
        """The sum of its kernel values, ascending: the same values have the same sum."""
        squared = distances_to(self.points.host[self.covered], self.points.host[image])
        values = same_bits(squared.mul_(-0.5 / self.kernel.squared_width), torch.exp)
        return float(fold_sum(values.sort().values))
