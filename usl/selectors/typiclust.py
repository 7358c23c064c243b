"""TypiClust: the most typical image of each of as many clusters (Hacohen et al., ICML 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.kmeans import Clusters
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points, as_points, check_budget, fold_sum

# Clusters at most, neighbours at most, and members that a cluster must have more than.
CLUSTERS, NEIGHBORS, SMALL = 500, 20, 5


def typical_picks(features: Any, clusters: Clusters, budget: int) -> Tensor:
    """From each cluster the image that is nearest to its neighbours there, largest clusters first.

    Typicality is 1 / mean distance to the min(20, size / 2) nearest images of the cluster (section
    3 of the paper, arXiv 2202.02794). Clusters of at most five images come last. Once every cluster
    has a pick, those with the fewest picks go on with their next best image.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    clusters : Clusters
        Of these features: min(budget, 500) of them, in the paper.
    budget : int
        B.

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing. Equal sizes go to the first cluster, equally typical images to the
        lowest index.

    Raises
    ------
    InputError
        Bad features, a budget out of range, or clusters of other features.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    if len(clusters.labels) != len(points):
        raise InputError(f"{len(points)} features and {len(clusters.labels)} cluster labels")
    sizes = clusters.sizes.tolist()
    # By rank: large ones first, each with its images from the most typical one on.
    order = sorted(
        (c for c, size in enumerate(sizes) if size), key=lambda c: (sizes[c] <= SMALL, -sizes[c])
    )
    ranked = [_by_typicality(points, (clusters.labels == c).nonzero()[:, 0]) for c in order]
    picks: list[int] = []
    for turn in range(max(map(len, ranked))):
        picks += [int(images[turn]) for images in ranked if turn < len(images)]
        if len(picks) >= budget:
            break
    return torch.tensor(picks[:budget])


def _by_typicality(points: Points, members: Tensor) -> Tensor:
    """Images of a cluster, ascending, from the most typical one on."""
    near = min(NEIGHBORS, max(1, len(members) // 2))
    if len(members) == 1:
        return members
    # One more, since an image is its own nearest.
    found = find_neighbors(points.host[members], near + 1, backend="torch").distances
    mean = fold_sum(found[:, 1:].double().sqrt()) / near
    return members[mean.argsort(stable=True)]
