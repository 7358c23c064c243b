"""Picks by their distances to the picks before: k-centre greedy, D² sampling, greedy D²."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.distances import distances_to
from usl.geometry.kmeans import member_sums
from usl.geometry.points import Points, as_points, check_budget, fold_sum


def farthest_picks(features: Any, budget: int) -> Tensor:
    """Begin with the image nearest the mean, then always take the one farthest from all picks.

    Greedy k-centre (Gonzalez, 1985), as Sener and Savarese use it on embeddings (ICLR 2018,
    Algorithm 1). It takes outliers first.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing; equal distances go to the lowest index.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    together = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    total = member_sums(points, together, together[:1] == 0).cpu()
    nearest = _Nearest(points, int(distances_to(points.host, total[0] / len(points)).argmin()))
    for _ in tqdm(range(budget - 1), desc="picks", delay=2, leave=False, disable=None):
        nearest.take(int(nearest.distances.argmax()))
    return torch.tensor(nearest.picks)


def squared_distance_picks(features: Any, budget: int, *, seed: int) -> Tensor:
    """Draw each image with a probability in proportion to its squared distance to the picks.

    The start of k-means++ (Arthur and Vassilvitskii, SODA 2007), whose first image is drawn evenly;
    FreeSel chooses so among features of patches (Xie et al., NeurIPS 2023, arXiv 2309.17342).

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    seed : int

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing. Once only copies of picks are left, the lowest index comes first.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    return _drawn(features, budget, seed, 1)


def spread_picks(
    features: Any, budget: int, *, seed: int, away: Callable[[int], Tensor] | None = None
) -> Tensor:
    """Each time draw a few images as :func:`squared_distance_picks`, and take the best of them.

    The best leaves the smallest sum of squared distances to the picks; of 2 + ln B it is chosen
    (Arthur and Vassilvitskii, SODA 2007, section 7; Grunau et al., SODA 2023).

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    seed : int
    away : callable, optional
        Given an image, its exact squared distances to all, (N,), float64, where they are known.

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing; of equal sums the first drawn. Once only copies of picks are left,
        the lowest index comes first.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    return _drawn(features, budget, seed, 2 + int(math.log(max(1, budget))), away)


def _drawn(
    features: Any,
    budget: int,
    seed: int,
    tries: int,
    away: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Picks, each the best of so many that are drawn."""
    points = as_points(features)
    check_budget(budget, len(points))
    random = np.random.RandomState(seed)
    nearest = _Nearest(points, int(random.randint(len(points))), away)
    for _ in tqdm(range(budget - 1), desc="picks", delay=2, leave=False, disable=None):
        drawn = nearest.draw(random, tries)
        left = [nearest.after(image) for image in drawn]
        sums = [float(fold_sum(distances.clamp_min(0))) for distances in left]
        best = sums.index(min(sums))
        nearest.take(drawn[best], left[best])
    return torch.tensor(nearest.picks)


class _Nearest:
    """The picks so far, and every image's squared distance to the nearest; -1 of picks."""

    def __init__(
        self, points: Points, first: int, away: Callable[[int], Tensor] | None = None
    ) -> None:
        self.away = away or (lambda image: distances_to(points.host, points.host[image]))
        self.picks, self.distances = [first], self.away(first).clone()
        self.distances[first] = -1.0

    def after(self, pick: int) -> Tensor:
        """What the distances become with another pick."""
        return torch.minimum(self.distances, self.away(pick))

    def take(self, pick: int, after: Tensor | None = None) -> None:
        """Add a pick; ``after`` are the distances with it, where they are known."""
        self.picks.append(pick)
        self.distances = self.after(pick) if after is None else after
        self.distances[pick] = -1.0

    def draw(self, random: np.random.RandomState, count: int) -> list[int]:
        """So many images, perhaps one twice, each in proportion to its distance.

        Where only copies of picks are left, the first of them.
        """
        # Summed one after the other, in float64; an image of weight 0 adds nothing.
        reached = np.cumsum(self.distances.clamp_min(0).numpy())
        if reached[-1] <= 0:
            return [int(self.distances.argmax())]
        drawn = np.searchsorted(reached, random.random_sample(count) * reached[-1], "right")
        # A product may have been rounded up to the whole sum.
        found: list[int] = np.minimum(drawn, np.searchsorted(reached, reached[-1])).tolist()
        return found
