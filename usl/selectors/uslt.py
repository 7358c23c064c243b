"""Picks and pseudo-labels from trained clusters (USL-T; paper, section 4, method of selection)."""

from __future__ import annotations

import torch
from torch import Tensor

from usl.errors import InputError
from usl.geometry.kmeans import cluster_by_cluster
from usl.geometry.points import check_budget, first_argmin


def confident(logits: Tensor, *, head: int, mean_of_heads: bool) -> tuple[Tensor, Tensor]:
    """Cluster of every image, by one head, and how sure that is.

    Parameters
    ----------
    logits : Tensor (N, H, C)
    head : int
        The head whose argmax makes the clusters.
    mean_of_heads : bool
        Confidence is the mean over the heads of each one's own largest probability, instead of
        this head's.

    Returns
    -------
    clusters : Tensor (N,), int64
    confidence : Tensor (N,), float64

    Raises
    ------
    InputError
        There is no such head.
    """
    check_head(head, logits.shape[1])
    top = logits.double().softmax(dim=2).amax(dim=2)
    # argmax of torch may return any of equal maxima; ties go to the lowest index here.
    clusters = first_argmin(-logits[:, head])
    return clusters, top.mean(dim=1) if mean_of_heads else top[:, head]


def check_head(head: int, heads: int) -> None:
    """Raise InputError unless there is such a head."""
    if not 0 <= head < heads:
        raise InputError(f"`head` is {head}; the checkpoint has heads 0 to {heads - 1}")


def check_count(count: int) -> None:
    """Raise InputError unless so many images of a cluster can get a label."""
    if count < 1:
        raise InputError(f"`pseudo_labels` is {count}; choose at least 1, the pick itself")


def best_of_clusters(
    clusters: Tensor, score: Tensor, budget: int, *, by_size: bool = False
) -> Tensor:
    """The image of the highest score from each cluster; exactly ``budget`` distinct images.

    With fewer non-empty clusters than picks, the largest ones give their next best images in turn.
    With more, the largest are used. Ties go to the lowest index.

    Parameters
    ----------
    clusters : Tensor (N,), int64
    score : Tensor (N,)
    budget : int
        B, from 1 to N.
    by_size : bool
        Order the picks by falling size of their clusters, instead of by the clusters' index.

    Returns
    -------
    Tensor (B,), int64
        The best of each cluster; then, where clusters are too few, the next best.

    Raises
    ------
    InputError
        The budget is out of range.
    """
    check_budget(budget, len(clusters))
    sizes = torch.bincount(clusters)
    rank_of_cluster = torch.empty_like(sizes)
    rank_of_cluster[torch.argsort(sizes, descending=True, stable=True)] = torch.arange(len(sizes))
    rank = _ranks(clusters, score)

    # Round after round, the clusters by falling size.
    turn = rank * len(sizes) + rank_of_cluster[clusters]
    chosen = torch.argsort(turn, stable=True)[:budget]
    if by_size:
        return chosen
    first = chosen[rank[chosen] == 0]
    return torch.cat([first[torch.argsort(clusters[first])], chosen[len(first) :]])


def pseudo_labels(
    clusters: Tensor, mean_distances: Tensor, picks: Tensor, labels: Tensor, *, count: int
) -> Tensor:
    """Give the label of each pick to the densest images of its cluster.

    Parameters
    ----------
    clusters : Tensor (N,), int64
    mean_distances : Tensor (N,)
        Mean kNN distances; the smallest come first.
    picks : Tensor (B,), int64
    labels : Tensor (B,), int64
        Of the picks.
    count : int
        Images of a cluster that get its label, at least 1.

    Returns
    -------
    Tensor (N,), int64
        -1 for images without one. Every pick has its own label, also where a cluster has two.
    """
    check_count(count)
    label_of_cluster = torch.full((int(clusters.max()) + 1,), -1)
    # The last pick of a cluster first, so that the best one, which came first, has the last word.
    for cluster, label in zip(clusters[picks].flip(0), labels.flip(0), strict=True):
        label_of_cluster[cluster] = label
    near = _ranks(clusters, -mean_distances) < count
    given = torch.where(near, label_of_cluster[clusters], -1)
    given[picks] = labels
    return given


def _ranks(clusters: Tensor, score: Tensor) -> Tensor:
    """Rank of every image within its cluster by falling score, 0 for the best, (N,), int64."""
    grouped = cluster_by_cluster(clusters, -score)
    sizes = torch.bincount(clusters)
    starts = torch.cumsum(sizes, 0) - sizes
    rank = torch.empty_like(clusters)
    rank[grouped] = torch.arange(len(clusters)) - starts[clusters[grouped]]
    return rank
