"""Picks from classes or clusters: what USL is compared with."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.geometry.distances import distances_to
from usl.geometry.kmeans import Clusters, assigned_distances, cluster_by_cluster, kmeans
from usl.geometry.points import as_points, check_budget, fold_sum
from usl.selectors.farthest import spread_picks

# Images that spread starts are drawn from, at most about twice as many; and distances that are kept
# meanwhile, 256 MB.
DRAWN_FROM, KEPT = 2048, 2**25


def stratified_picks(labels: Tensor, budget: int, *, seed: int) -> Tensor:
    """Draw the same number of images from each class. Uses labels: not for real selections.

    As the released FixMatch code draws its ``slice``: class after class, from one legacy generator.
    What does not divide evenly comes after that, from classes drawn at random; what a class has too
    few images for comes from the others.

    Parameters
    ----------
    labels : Tensor (N,), int64
        Classes, from 0.
    budget : int
        B.
    seed : int

    Returns
    -------
    Tensor (B,), int64, class after class

    Raises
    ------
    InputError
        The budget is out of range.
    """
    check_budget(budget, len(labels))
    random = np.random.RandomState(seed)
    members = [np.flatnonzero(labels.numpy() == label) for label in np.unique(labels.numpy())]
    share = budget // len(members)
    chosen = [random.choice(m, size=min(share, len(m)), replace=False) for m in members]
    while (missing := budget - sum(map(len, chosen))) > 0:
        # Round by round one image more from each class that has one left, in a random order.
        left = [np.setdiff1d(m, c) for m, c in zip(members, chosen, strict=True)]
        for one in random.permutation([i for i, rest in enumerate(left) if len(rest)])[:missing]:
            chosen[one] = np.append(chosen[one], random.choice(left[one]))
    return torch.from_numpy(np.concatenate(chosen))


def central_picks(features: Any, clusters: Clusters) -> Tensor:
    """From each cluster the image nearest to its centroid; equal distances go to the lowest index.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    clusters : Clusters
        Of these features.

    Returns
    -------
    Tensor (B,), int64
        One for each cluster with members, in index order.
    """
    distances = assigned_distances(as_points(features), clusters.centroids, clusters.labels)
    order = cluster_by_cluster(clusters.labels, distances)
    ordered = clusters.labels[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def best_clusters(
    features: Any,
    clusters: int,
    *,
    seed: int,
    starts: int = 8,
    iterations: int = 200,
    nonempty: int = 0,
    spread: bool = False,
) -> Clusters:
    """The best of several k-means: that with the smallest sum of squared distances to centroids.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    clusters : int
        C.
    seed : int
        Its starts have the seeds ``seed · starts`` and those that follow.
    starts : int
    iterations, nonempty : int
        As for :func:`usl.geometry.kmeans.kmeans`.
    spread : bool
        They begin with images that lie apart, :func:`usl.selectors.farthest.spread_picks`, not with
        those that :func:`usl.geometry.kmeans.kmeans` draws. Of more than 4095 images evenly spaced
        ones are drawn from, at least 2048.

    Returns
    -------
    Clusters
        Of equal sums the first.

    Raises
    ------
    InputError
        As :func:`usl.geometry.kmeans.kmeans`.
    """
    points = as_points(features)
    step = max(1, min(len(points) // DRAWN_FROM, len(points) // max(1, clusters)))
    some = points.host[::step]

    # Most images are looked at in several starts.
    @lru_cache(maxsize=KEPT // len(some))
    def away(image: int) -> Tensor:
        return distances_to(some, some[image])

    def begin(number: int) -> Tensor | None:
        if not spread:
            return None
        return step * spread_picks(some, clusters, seed=number % 2**32, away=away)

    found = [
        kmeans(
            points, clusters, seed=number, iterations=iterations, start=begin(number),
            nonempty=nonempty, quiet=True,
        )
        for number in range(seed * starts, (seed + 1) * starts)
    ]  # fmt: skip
    sums = [float(fold_sum(assigned_distances(points, c.centroids, c.labels))) for c in found]
    return found[sums.index(min(sums))]
