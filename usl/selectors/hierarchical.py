"""Hierarchical k-means: picks shared out evenly over clusters of clusters (Vo et al., 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.geometry.assignment import nearest_centroids
from usl.geometry.kmeans import Clusters, assigned_distances, cluster_by_cluster, kmeans
from usl.geometry.pairs import cover_step
from usl.geometry.points import Points, as_points, check_budget
from usl.selectors.farthest import squared_distance_picks

# As published: iterations of a k-means, and rounds of resampling; of more images than LARGE, as of
# the largest published pool, the lowest level does without resampling.
ITERATIONS, ROUNDS, LARGE = 50, 10, 16384
# Images of a lowest cluster, on average, as in the largest published pool; lowest clusters for each
# pick; and members of a cluster above at least, and of a top cluster at most: published, 5 to 20.
IMAGES, SPARE, LEAST, MOST = 74, 4, 4, 64


def hierarchical_picks(features: Any, budget: int, *, seed: int) -> Tensor:
    """Cluster images, then the centroids, and share the budget out from the top down.

    Section 3 of arXiv 2405.15613, with the settings of the published code: each level is k-means of
    the centroids below. It is resampled: in every round the members nearest to their centroid, half
    the mean size of a cluster, are clustered anew, which draws centroids out of the densest places,
    and all members join the nearest. Each k-means begins with k-means++'s draws; of more than
    16 383 members evenly spaced ones are drawn from.

    The budget goes to the top clusters one by one, round after round, as far as they have images;
    the share of each goes to its clusters in the same way. What is left over for a last round, and
    the images of a lowest cluster, the published code draws at random, or, for the images, takes
    the nearest to the centroid. Here both are the nearest, since a few picks should be typical; at
    the top, the largest clusters.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    seed : int
        Of all draws.

    Returns
    -------
    Tensor (B,), int64
        Cluster after cluster. Equal distances go to the lowest index.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    random = np.random.RandomState(seed)
    # For each level from the images up: members of its clusters, and images below a cluster.
    members: list[list[Tensor]] = []
    images = [torch.ones(len(points), dtype=torch.int64)]
    for clusters in level_sizes(len(points), budget):
        rounds = ROUNDS if members or len(points) <= LARGE else 0
        # Of copies, some clusters below may have been empty.
        level = _clustered(points, min(clusters, len(points)), rounds, random)
        kept = level.sizes.nonzero()[:, 0]
        order, sizes = _by_distance(points, level), level.sizes[kept]
        members.append(list(torch.split(order, sizes.tolist())))
        images.append(torch.stack([images[-1][some].sum() for some in members[-1]]))
        points = Points(level.centroids[kept], points.device)

    def taken(level: int, some: Tensor, share: int) -> list[Tensor]:
        if level == 0:
            return [some[:share]]
        parts = shares(images[level][some], share).tolist()
        below = [members[level - 1][cluster] for cluster in some.tolist()]
        return [p for m, n in zip(below, parts, strict=True) if n for p in taken(level - 1, m, n)]

    largest = images[-1].argsort(descending=True, stable=True)
    return torch.cat(taken(len(members), largest, budget))


def level_sizes(images: int, budget: int) -> list[int]:
    """Clusters of each level, from the images up: N / 74 at the bottom and B at the top.

    At the bottom there are at least four for each pick, but then of four images or more; four or
    more of them make a top cluster. Where they would be more than 64, a level between the two has
    the geometric mean. No such rule was found in the paper.
    """
    bottom = max(images // IMAGES, min(SPARE * budget, images // LEAST), 1)
    top = max(1, min(budget, bottom // LEAST))
    between = [math.isqrt(bottom * top)] if bottom > MOST * top else []
    return [bottom, *between, top]


def shares(room: Tensor, budget: int) -> Tensor:
    """Share a budget out one by one, in order, to those who have room left, round after round.

    ``room`` is (n,), int64, as are the shares; in all there must be enough.
    """
    given = torch.zeros_like(room)
    while (left := budget - int(given.sum())) > 0:
        given[(given < room).nonzero()[:left, 0]] += 1
    return given


def _clustered(points: Points, count: int, rounds: int, random: np.random.RandomState) -> Clusters:
    """One level: k-means, and rounds of resampling."""
    found = _kmeans(points, count, random)
    near = len(points) // (2 * count)
    for _ in range(rounds if near > 1 else 0):
        order, sizes = _by_distance(points, found), found.sizes.tolist()
        kept = torch.cat([some[:near] for some in torch.split(order, sizes)]).sort().values
        again = _kmeans(Points(points.host[kept], points.device), min(count, len(kept)), random)
        found = Clusters(nearest_centroids(points, again.centroids), again.centroids)
    return found


def _kmeans(points: Points, count: int, random: np.random.RandomState) -> Clusters:
    step = min(cover_step(len(points)), len(points) // count)
    seed = int(random.randint(2**31))
    start = step * squared_distance_picks(points.host[::step], count, seed=seed)
    return kmeans(points, count, seed=0, start=start, iterations=ITERATIONS, quiet=True)


def _by_distance(points: Points, grouped: Clusters) -> Tensor:
    """Rows (N,), cluster after cluster, in each from the nearest to the centroid on."""
    distances = assigned_distances(points, grouped.centroids, grouped.labels)
    return cluster_by_cluster(grouped.labels, distances)
