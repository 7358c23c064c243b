"""ProbCover: balls that cover as many images as possible (Yehuda et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.pairs import SIDE, Pairs, cover_step
from usl.geometry.points import Points, as_points, blocks, check_budget

# Share of the balls that must hold images of one pseudo-label only.
PURE = 0.95


def pure_radius(features: Any, labels: Tensor) -> float:
    """The largest radius at which 95 % of balls round an image are pure (section 3.3).

    A ball is pure while it does not reach the nearest image of another label. The balls are those
    round all images up to 16 383, round evenly spaced ones of more.

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
    pairs, labels = Pairs(points, torch.float32), labels.to(points.device)

    def others(rows: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks of rows and of all images: squared distances, infinite within a label."""
        shares = list(blocks(len(rows), SIDE))
        for start, stop in tqdm(shares, desc="radius", delay=2, leave=False, disable=None):
            some = rows[start:stop]
            for first, last in blocks(len(points), SIDE):
                squared = pairs.squared(some, slice(first, last))
                squared.masked_fill_(labels[some][:, None] == labels[first:last], torch.inf)
                yield slice(start, stop), slice(first, last), squared

    centres = torch.arange(0, len(points), cover_step(len(points)), device=points.device)
    reach = torch.full((len(centres),), torch.inf, dtype=torch.float64, device=points.device)
    for rows, _, squared in others(centres):
        reach[rows] = torch.minimum(reach[rows], squared.amin(dim=1))
    rank = int((1 - PURE) * len(centres))
    wanted = reach.sort().values[rank]
    # Exact where it matters, so that it does not depend on how products are made.
    doubtful = ((reach - wanted).abs() <= 2 * pairs.error).nonzero()[:, 0]
    exact = torch.full((len(doubtful),), torch.inf, dtype=torch.float64)
    for rows, columns, squared in others(centres[doubtful]):
        near = squared <= reach[doubtful[rows], None] + 2 * pairs.error
        row, column = (places.cpu() for places in near.nonzero(as_tuple=True))
        row += rows.start
        images = centres[doubtful].cpu()[row]
        exact.scatter_reduce_(0, row, pairs.exact_pairs(images, column + columns.start), "amin")
    reach[doubtful] = exact.to(reach.device)
    return float(reach.sort().values[rank])


def cover_picks(features: Any, budget: int, radius: float) -> Tensor:
    """Always take the image whose ball covers most images that no ball covers yet.

    To be covered are all images up to 16 383, evenly spaced ones of more.

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
        all are to be covered anew.

    Raises
    ------
    InputError
        Bad features, a budget out of range, or a radius below 0.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    if not radius >= 0:
        raise InputError(f"`radius` is {radius}; choose 0 or more")
    balls, step = _Balls(points, radius), cover_step(len(points))
    references = torch.arange(0, len(points), step)
    every = balls.counts(references)
    counts, covered = every.clone(), torch.zeros(len(references), dtype=torch.bool)
    free = torch.ones(len(points), dtype=torch.bool)
    picks: list[int] = []
    for _ in tqdm(range(budget), desc="picks", delay=2, leave=False, disable=None):
        pick = int(torch.where(free, counts, -1).argmax())
        if not counts[pick]:
            counts, covered = every.clone(), torch.zeros_like(covered)
            pick = int(torch.where(free, counts, -1).argmax())
        picks.append(pick)
        free[pick] = False
        new = balls.within(torch.tensor([pick]))[0, ::step]
        # Not even a pick is within a radius of 0 of itself.
        new |= references == pick
        new &= ~covered
        covered |= new
        counts -= balls.counts(references[new])
    return torch.tensor(picks)


class _Balls:
    """Which images lie within a radius of each other, decided exactly."""

    def __init__(self, points: Points, radius: float) -> None:
        self.points, self.radius, self.pairs = points, radius, Pairs(points, torch.float32)

    def within(self, images: Tensor) -> Tensor:
        """Which of all images are nearer than the radius to each of some, (n, N), bool."""
        squared = self.pairs.squared(images.to(self.points.device), slice(None))
        near = squared < self.radius - self.pairs.error
        doubtful = (squared < self.radius + self.pairs.error) ^ near
        near, (rows, columns) = near.cpu(), doubtful.cpu().nonzero(as_tuple=True)
        near[rows, columns] = self.pairs.exact_pairs(images[rows], columns) < self.radius
        return near

    def counts(self, images: Tensor) -> Tensor:
        """How many of some images each of all is nearer to than the radius, (N,), int64."""
        counts = torch.zeros(len(self.points), dtype=torch.int64)
        shares = torch.split(images, max(1, SIDE * SIDE // len(self.points)))
        for some in tqdm(shares, desc="balls", delay=2, leave=False, disable=None):
            counts += self.within(some).sum(dim=0)
        return counts
