"""From embeddings to picks, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import as_points
from usl.selectors.registry import Context, chosen_by, selectors_named
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import check_labelled, check_neighbors, pick


@dataclass(frozen=True)
class Selection:
    """What :func:`select` returns; tensors on the CPU.

    Attributes
    ----------
    picks : Tensor (B,), int64
        Rows of the features worth labelling, clusters in index order.
    clusters : Tensor (N,), int64
        Cluster of every image; of other selectors the nearest pick.
    density : Tensor (N,), float64
        1 / mean squared distance to the K nearest neighbours.
    scores : Tensor (N,), float64
        Density minus the regulariser, in the last round; of other selectors the density.
    """

    picks: Tensor
    clusters: Tensor
    density: Tensor
    scores: Tensor


def select(
    features: Any,
    budget: int,
    *,
    seed: int = 0,
    k: int | None = None,
    iterations: int = 200,
    clusters: int | None = None,
    regularizer: Regularizer | None = None,
    labelled: Sequence[int] | Tensor = (),
    selector: str = "usl",
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> Selection:
    """Choose the ``budget`` images most worth labelling, with USL or another selector.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
        Embeddings of all images; the paper's are L2-normalised.
    budget : int
        B, number of picks, from 1 to N.
    seed : int
        Of the first k-means centroids.
    k : int, optional
        Neighbours that make the density, the image itself included; 2 to N. Default 400, the
        paper's for CIFAR-10, or all of fewer images.
    iterations : int
        Limit of k-means.
    clusters : int, optional
        C ≥ B; default B, and as many more as there are labelled images. The first B clusters with
        members are used, or with ``labelled`` the B largest that none of these is in.
    regularizer : Regularizer, optional
        Default ``Regularizer()``, the paper's values for CIFAR-10.
    labelled : sequence of int
        Rows whose labels are known, in any order: their clusters are taken, and new picks keep
        away from them.
    selector : str
        A key of :data:`usl.selectors.registry.SELECTORS`: typiclust, maxherding, …
    backend : str
        See :func:`usl.geometry.neighbors.exact.find_neighbors`.
    device : str or torch.device
        Where to compute, unless ``features`` are Points.

    Returns
    -------
    Selection
        With exactly ``budget`` distinct picks.

    Raises
    ------
    InputError
        Bad features, or an option out of range.

    Notes
    -----
    Wang, Lian and Yu, "Unsupervised Selective Labeling for More Effective Semi-Supervised
    Learning", ECCV 2022, section 3.
    """
    points = as_points(features, device)
    (rule,) = selectors_named([selector])
    rule.check(budget, len(points), seed=seed)
    if rule.uses_labels:
        raise InputError(
            f"`selector` {selector} needs the labels of the whole pool; choose another"
        )
    known = check_labelled(labelled, budget, len(points))
    wanted = budget + len(known) if clusters is None else clusters
    if wanted < budget + len(known):
        raise InputError(
            f"`clusters` is {wanted}; choose at least {budget + len(known)}, the budget and the "
            "labelled images"
        )
    if selector != "usl" and (len(known) or clusters is not None):
        raise InputError(f"{rule.title} takes no labels and no `clusters`; leave them out")
    near = min(400, len(points)) if k is None else k
    check_neighbors(near, len(points))
    density = find_neighbors(points, near, backend=backend).density
    reg = regularizer or Regularizer()
    if selector != "usl":
        context = Context(points, density, regularizer=reg, iterations=iterations)
        grouped, picks = chosen_by(rule, context, budget, seed=seed)
        return Selection(picks.indices, grouped.labels, density, picks.scores)
    needed = budget + len(known)
    grouped = kmeans(points, wanted, seed=seed, iterations=iterations, nonempty=needed)
    picks = pick(points, density, grouped.labels, budget, reg, labelled=known)
    return Selection(picks.indices, grouped.labels, density, picks.scores)
