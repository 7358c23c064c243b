"""Selections that USL is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.selection.kmeans import Clusters, own_distances
from usl.selection.points import as_points
from usl.selection.usl import check_budget


def stratified_picks(labels: Tensor, budget: int, *, seed: int) -> Tensor:
    """Draw the same number of images from each class. Uses labels: not for real selections.

    Parameters
    ----------
    labels : Tensor (N,), int64
        Classes, from 0.
    budget : int
        B. What does not divide evenly goes to classes drawn at random, and what a class has too
        few images for to the others.
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
    classes = np.unique(labels.numpy())
    members = [np.flatnonzero(labels.numpy() == label) for label in classes]
    share = np.zeros(len(classes), dtype=np.int64)
    while share.sum() < budget:
        # Round by round one image more from each class that has one left, in a random order.
        open_ = np.flatnonzero(share < [len(m) for m in members])
        share[random.permutation(open_)[: budget - share.sum()]] += 1
    chosen = [
        random.choice(m, size=wanted, replace=False)
        for m, wanted in zip(members, share, strict=True)
    ]
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
    distances = own_distances(as_points(features), clusters.centroids, clusters.labels)
    order = torch.argsort(distances, stable=True)
    order = order[torch.argsort(clusters.labels[order], stable=True)]
    ordered = clusters.labels[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
