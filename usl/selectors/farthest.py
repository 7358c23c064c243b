"""Picks by their distances to the picks before: k-centre greedy, and D² sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.geometry.kmeans import member_sums
from usl.geometry.points import Points, as_points, check_budget, distances_to


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
    together = torch.zeros(len(points), dtype=torch.int64)
    total = member_sums(points.host, together, torch.ones(1, dtype=torch.bool))
    nearest = _Nearest(points, int(distances_to(points.host, total[0] / len(points)).argmin()))
    for _ in range(budget - 1):
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
    points = as_points(features)
    check_budget(budget, len(points))
    random = np.random.RandomState(seed)
    nearest = _Nearest(points, int(random.randint(len(points))))
    for _ in range(budget - 1):
        # Summed one after the other, in float64; an image of weight 0 adds nothing.
        reached = np.cumsum(nearest.distances.clamp_min(0).numpy())
        if reached[-1] > 0:
            drawn = int(np.searchsorted(reached, random.random_sample() * reached[-1], "right"))
            # The product may have been rounded up to the whole sum.
            nearest.take(min(drawn, int(np.searchsorted(reached, reached[-1]))))
        else:
            nearest.take(int(nearest.distances.argmax()))
    return torch.tensor(nearest.picks)


class _Nearest:
    """The picks so far, and every image's squared distance to the nearest; -1 of picks."""

    def __init__(self, points: Points, first: int) -> None:
        self.points, self.picks = points, [first]
        self.distances = distances_to(points.host, points.host[first])
        self.distances[first] = -1.0

    def take(self, pick: int) -> None:
        """Add a pick."""
        self.picks.append(pick)
        near = distances_to(self.points.host, self.points.host[pick])
        torch.minimum(self.distances, near, out=self.distances)
        self.distances[pick] = -1.0
