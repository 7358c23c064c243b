"""ProbCover: balls that cover as many images as possible (Yehuda et al., NeurIPS 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.pairs import SIDE, Pairs
from usl.geometry.points import as_points, check_budget, squared_distances

# Share of the balls that must hold images of one pseudo-label only.
PURE = 0.95


def pure_radius(features: Any, labels: Tensor) -> float:
    """The largest radius at which 95 % of all balls round an image are pure (section 3.3).

    A ball is pure while it does not reach the nearest image of another label.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    labels : Tensor (N,), int64
        Pseudo-labels, such as clusters of k-means.

    Returns
    -------
    float
        A squared distance; infinite where there is one label only.
    """
    points = as_points(features)
    if len(torch.unique(labels)) == 1:
        return float("inf")
    pairs, device = Pairs(points), points.device

    def others(rows: Tensor, columns: Tensor) -> Tensor:
        """Squared distances of rows to columns, infinite where both have one label."""
        squared = pairs.squared(rows.to(device), columns.to(device)).cpu()
        return squared.masked_fill_(labels[rows, None] == labels[columns], torch.inf)

    everything = torch.arange(len(points))
    reach = torch.full((len(points),), torch.inf, dtype=torch.float64)
    for rows in torch.split(everything, SIDE):
        for columns in torch.split(everything, SIDE):
            reach[rows] = torch.minimum(reach[rows], others(rows, columns).amin(dim=1))
    wanted = reach.sort().values[int((1 - PURE) * len(points))]
    # Exact where it matters, so that it does not depend on how products are made.
    for row in ((reach - wanted).abs() <= 2 * pairs.error).nonzero()[:, 0]:
        near = others(row[None], everything)[0] <= reach[row] + 2 * pairs.error
        reach[row] = squared_distances(points.host[near], points.host[row]).min()
    return float(reach.sort().values[int((1 - PURE) * len(points))])


def cover_picks(features: Any, budget: int, radius: float) -> Tensor:
    """Always take the image whose ball covers most images that no ball covers yet.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    radius : float
        A squared distance; images nearer than it are covered (arXiv 2205.11320, Algorithm 1).

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing; equal counts go to the lowest index. Once every image is covered,
        all but the picks are to be covered anew.

    Raises
    ------
    InputError
        Bad features, a budget out of range, or a radius below 0.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    if not radius >= 0:
        raise InputError(f"`radius` is {radius}; choose 0 or more")
    balls = _Balls(points, radius)
    every = balls.counts(torch.arange(len(points)))
    counts, covered = every.clone(), torch.zeros(len(points), dtype=torch.bool)
    free = torch.ones(len(points), dtype=torch.bool)
    picks: list[int] = []
    for _ in range(budget):
        pick = int(torch.where(free, counts, -1).argmax())
        if not counts[pick]:
            counts, covered = every.clone(), torch.zeros_like(covered)
            pick = int(torch.where(free, counts, -1).argmax())
        picks.append(pick)
        free[pick] = False
        new = balls.within(torch.tensor([pick]))[0] & ~covered
        # Not even a pick is within a radius of 0 of itself.
        new[pick] |= ~covered[pick]
        covered |= new
        counts -= balls.counts(new.nonzero()[:, 0])
    return torch.tensor(picks)


class _Balls:
    """Which images lie within a radius of each other, decided exactly."""

    def __init__(self, points: Any, radius: float) -> None:
        self.points, self.radius, self.pairs = points, radius, Pairs(points)

    def within(self, images: Tensor) -> Tensor:
        """Which of all images are nearer than the radius to each of some, (n, N), bool."""
        device = self.points.device
        squared = self.pairs.squared(images.to(device), slice(None)).cpu()
        found = squared < self.radius
        for row, column in ((squared - self.radius).abs() <= self.pairs.error).nonzero().tolist():
            pair = self.points.host[images[row]], self.points.host[column]
            found[row, column] = float(squared_distances(*pair)) < self.radius
        return found

    def counts(self, images: Tensor) -> Tensor:
        """How many of some images each of all is nearer to than the radius, (N,), int64."""
        counts = torch.zeros(len(self.points), dtype=torch.int64)
        for some in torch.split(images, max(1, SIDE * SIDE // len(self.points))):
            counts += self.within(some).sum(dim=0)
        return counts
