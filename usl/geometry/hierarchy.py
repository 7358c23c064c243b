"""Hierarchical k-means: not Lloyd's optimum, but for more clusters than that can have.

Its cost is that of √C clusters instead of C, as in Nistér and Stewénius, "Scalable recognition with
a vocabulary tree", CVPR 2006, with two levels.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.coarse import coarse_clusters
from usl.geometry.kmeans import Clusters, check_kmeans, kmeans
from usl.geometry.points import Points, as_points, first_copies
from usl.shards import Shards, resumed

# Points of a task, about.
TOGETHER = 1 << 18


def hierarchical_kmeans(
    features: Any,
    clusters: int,
    *,
    seed: int,
    iterations: int = 200,
    device: str | torch.device = "cpu",
    shards: Path | None = None,
    source: dict[str, Any] | None = None,
) -> Clusters:
    """Cluster points into about √C clusters, and each of these into its share of the C.

    Shares are proportional to the members, of which k-means in many dimensions has about equally
    many in each cluster (Gersho, "Asymptotically optimal block quantization", 1979).

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    clusters : int
        C, from 1 to N. All have members.
    seed : int
        Of all draws.
    iterations : int
        Limit of each k-means of the lower level.
    device : str or torch.device
        Where to compute, unless ``features`` are Points.
    shards : Path, optional
        Folder where the clusters of finished tasks are kept; those found there are not computed
        again. The caller removes it once the clusters are safe.
    source : dict, optional
        What the clusters depend on. Shards of another source are discarded.

    Returns
    -------
    Clusters
        On the CPU; the same for every block size, thread count and engine.

    Raises
    ------
    InputError
        Bad features, or ``clusters`` or ``iterations`` out of range.
    """
    points = as_points(features, device)
    check_kmeans(clusters, iterations, len(points))
    coarse = coarse_clusters(points, round(clusters**0.5), seed=seed)
    shares = _shares(points, coarse.members, clusters).tolist()
    near, places = points, coarse.members
    if points.spilled:
        near, places = coarse.in_order(points), coarse.places
    groups = _groups(coarse.members)
    tasks = [
        partial(_task, near, places[group], shares[group], seed, iterations) for group in groups
    ]
    rows = [torch.cat(coarse.members[group]) for group in groups]
    store = None
    if shards is not None:
        store = Shards(shards, source or {}, list(map(len, rows)), "clusters")
    labels, centroids = torch.empty(len(points), dtype=torch.int64), []
    found, first = resumed(points.engine, _split, tasks, store), 0
    with tqdm(total=len(points), desc="k-means", unit="image", disable=None) as bar:
        for where, (own, means) in zip(rows, found, strict=True):
            labels[where] = torch.from_numpy(own) + first
            centroids.append(torch.from_numpy(means))
            first += len(means)
            bar.update(len(where))
    return Clusters(labels, torch.cat(centroids))


def _shares(points: Points, members: list[Tensor], total: int) -> Tensor:
    """How many of the clusters those of each have, (n,), int64.

    Copies count once, as long as there are others: no two picks should be copies.
    """
    first = first_copies(points.host)
    pictures = first == torch.arange(len(first))
    distinct = torch.stack([pictures[rows].sum() for rows in members])
    enough = total <= int(pictures.sum()) and bool(distinct.all())
    return proportional(distinct if enough else torch.tensor(list(map(len, members))), total)


def proportional(sizes: Tensor, total: int) -> Tensor:
    """Share a total out in proportion to sizes, each at least 1 and at most its size, (n,), int64.

    By largest remainders, ties to the first; ``total`` is from n to their sum.
    """
    exact = sizes.double() * (total / int(sizes.sum()))
    shares = exact.long().clamp_min(1)
    while (left := total - int(shares.sum())) != 0:
        # Who may take one more, or give one, the farthest from its exact share first.
        step = 1 if left > 0 else -1
        free = shares < sizes if left > 0 else shares > 1
        lack = torch.where(free, step * (exact - shares), -torch.inf)
        order = lack.argsort(descending=True, stable=True)[: min(abs(left), int(free.sum()))]
        shares[order] += step
    return shares


def _groups(members: list[Tensor]) -> list[slice]:
    """Consecutive clusters of about TOGETHER points, or one that has more."""
    groups, begin, count = [], 0, 0
    for number, some in enumerate(members):
        if count and count + len(some) > TOGETHER:
            groups.append(slice(begin, number))
            begin, count = number, 0
        count += len(some)
    return [*groups, slice(begin, len(members))]


def _task(
    points: Points, members: list[Tensor], shares: list[int], seed: int, iterations: int
) -> tuple[Any, ...]:
    """The arguments of :func:`_split`."""
    return points.handle, members, shares, seed, iterations


def _split(
    points: Points, members: list[Tensor], shares: list[int], seed: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Labels of the points of some clusters, from 0 on, and centroids of their clusters."""
    labels, centroids, first = [], [], 0
    for rows, share in zip(members, shares, strict=True):
        found = kmeans(
            points.taken(rows), share, seed=seed, iterations=iterations, nonempty=share, quiet=True
        )
        labels.append(found.labels + first)
        centroids.append(found.centroids)
        first += share
    return torch.cat(labels), torch.cat(centroids)
