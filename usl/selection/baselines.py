"""Selections that USL is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.errors import InputError
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
        B. What does not divide evenly goes to classes drawn at random.
    seed : int

    Returns
    -------
    Tensor (B,), int64, class after class

    Raises
    ------
    InputError
        The budget is out of range, or a class has too few images.
    """
    check_budget(budget, len(labels))
    random = np.random.RandomState(seed)
    classes = np.unique(labels.numpy())
    share = np.full(len(classes), budget // len(classes))
    share[random.choice(len(classes), size=budget % len(classes), replace=False)] += 1
    chosen = []
    for label, wanted in zip(classes, share, strict=True):
        members = np.flatnonzero(labels.numpy() == label)
        if len(members) < wanted:
            raise InputError(f"class {label} has {len(members)} images, {wanted} are needed")
        chosen.append(random.choice(members, size=wanted, replace=False))
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
