"""Lloyd's k-means, the same for every block size, thread count and device (section 3.2)."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry import jit
from usl.geometry.assignment import Assigner
from usl.geometry.distances import distances_to, distances_to_own
from usl.geometry.points import BLOCK_ROWS, Points, as_points, blocks, first_copies, full_precision
from usl.shards import Snapshot

log = logging.getLogger("usl")

# Blocks of rows whose sums are made at a time, at most, and bytes of these sums.
AT_ONCE, PARTS = 16, 1 << 28


@dataclass(frozen=True)
class Clusters:
    """A clustering of N points.

    Attributes
    ----------
    labels : Tensor (N,), int64
        Cluster of each point.
    centroids : Tensor (C, D), float64
        Means of the members. A cluster without any keeps the last mean it had.
    """

    labels: Tensor
    centroids: Tensor

    @property
    def sizes(self) -> Tensor:
        """Members of each cluster, (C,), int64."""
        return torch.bincount(self.labels, minlength=len(self.centroids))


def kmeans(
    features: Any,
    clusters: int,
    *,
    seed: int,
    iterations: int = 200,
    nonempty: int = 0,
    start: Tensor | None = None,
    quiet: bool = False,
    device: str | torch.device = "cpu",
    kept: Path | None = None,
    source: dict[str, Any] | None = None,
) -> Clusters:
    """Cluster points with Lloyd's algorithm.

    The first centroids are the points ``torch.randperm(N)[:clusters]`` drawn on the CPU after
    ``torch.manual_seed(seed)`` (published selections depend on that), or those of ``start``. A
    cluster that empties is never chosen again. Stopping once no label changes gives what all
    iterations would give.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    clusters : int
        C, from 1 to N.
    seed : int
        Of the first centroids.
    iterations : int
        Limit; at least 1.
    nonempty : int
        How many clusters must have members in the end. Where fewer have, each empty one in index
        order takes, from the clusters with members that differ, the point farthest from all
        centres: its centroid and the points taken before; its exact copies come with it. Only where
        nothing else is left it takes one of several copies, from a cluster with more than one.
    start : Tensor (C,), int64, optional
        Rows of the first centroids; ``seed`` then plays no part.
    quiet : bool
        Show no progress.
    device : str or torch.device
        Where to compute, unless ``features`` are Points.
    kept : Path, optional
        Folder for the state of about a minute ago, from which it goes on, to the same result, where
        it was stopped. The caller removes it once the clusters are safe.
    source : dict, optional
        What the clusters depend on. A state of another source is discarded.

    Returns
    -------
    Clusters
        On the CPU.

    Raises
    ------
    InputError
        Bad features, or ``clusters`` or ``iterations`` out of range.
    """
    points = as_points(features, device)
    check_kmeans(clusters, iterations, len(points))
    first = start
    if first is None:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randperm(len(points), generator=generator)[:clusters]
    snapshot = None if kept is None else Snapshot(kept, source or {}, "k-means")
    with full_precision():
        result = _lloyd(points, points.host[first].double(), iterations, quiet, snapshot)
    return _fill(points, result, nonempty)


def check_kmeans(clusters: int, iterations: int, images: int) -> None:
    """Raise InputError unless there can be so many clusters of so many images."""
    if not 1 <= clusters <= images:
        raise InputError(f"`clusters` is {clusters}; choose 1 to {images}, the images")
    if iterations < 1:
        raise InputError(f"`iterations` is {iterations}; choose at least 1")


def _lloyd(
    points: Points, centroids: Tensor, iterations: int, quiet: bool, snapshot: Snapshot | None
) -> Clusters:
    allowed, moved = torch.ones(2, len(centroids), dtype=torch.bool)
    labels, done = torch.full((len(points),), -1), 0
    if snapshot is not None:
        done, state = snapshot.last()
        if done:
            log.info("k-means goes on after %d iterations", done)
            labels, centroids, allowed = map(torch.from_numpy, state)
    labels, centroids, allowed, moved = (
        tensor.to(points.device) for tensor in (labels, centroids, allowed, moved)
    )
    assign = Assigner(points, quiet)
    bar = tqdm(desc="k-means", unit="iteration", total=iterations, disable=quiet or None)
    bar.update(done)
    with bar:
        for number in range(done, iterations):
            before, labels = labels, assign(centroids, allowed, moved)
            bar.update()
            other = labels != before
            if not other.any():
                break
            counts = torch.bincount(labels, minlength=len(centroids))
            allowed = counts > 0
            # The mean of the same members is the same.
            moved = torch.zeros_like(allowed)
            moved[labels[other]] = True
            moved[before[other & (before >= 0)]] = True
            moved &= allowed
            sums = member_sums(points, labels, moved)
            means = sums / counts.clamp_min(1)[:, None]
            centroids = torch.where(moved[:, None], means, centroids)
            if snapshot is not None and snapshot.due:
                state = [tensor.cpu().numpy() for tensor in (labels, centroids, allowed)]
                snapshot.keep(number + 1, state)
    return Clusters(labels.cpu(), centroids.cpu())


def member_sums(points: Points, labels: Tensor, wanted: Tensor) -> Tensor:
    """Sum of the members of each cluster in float64, over fixed blocks of rows added in order.

    Parameters
    ----------
    points : Points, N of them
    labels : Tensor (N,), int64, on their device
    wanted : Tensor (C,), bool, on their device
        Clusters whose sums are asked for; others get 0.

    Returns
    -------
    Tensor (C, D), float64, on their device, with the same bits on every one
    """
    sums = torch.zeros(len(wanted), points.dim, dtype=torch.float64, device=points.device)
    # Not all at once: those of each block are as large as the centroids.
    at_once = AT_ONCE if points.device.type == "cpu" else 1
    at_once = max(1, min(at_once, PARTS // (8 * sums.numel())))
    tasks = (
        (points.handle, start, labels[start:stop], wanted)
        for start, stop in blocks(len(points), at_once * BLOCK_ROWS)
    )
    for parts in points.engine.map(_sums_of_blocks, tasks):
        for part in parts:
            sums[wanted] += part
    return sums


def _sums_of_blocks(points: Points, start: int, labels: Tensor, wanted: Tensor) -> list[Tensor]:
    """The sums of each block of some rows, from ``start`` on, for the clusters that are wanted."""
    rows = points.exact[start : start + len(labels)]
    if rows.device.type != "cpu":
        add = _part_by_rank
    elif jit.works():
        add = _compiled_part
    else:
        add = _torch_part

    def some(block: tuple[int, int]) -> Tensor:
        inside = slice(*block)
        return add(rows[inside], labels[inside], wanted)[wanted]

    if add is not _compiled_part:
        return [some(block) for block in blocks(len(rows))]
    with jit.threads() as pool:
        return list(pool.map(some, blocks(len(rows))))


def _torch_part(rows: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """The sums (C, D) of a block on a CPU, where adding by index keeps the order of rows.

    So do the other two.
    """
    part = torch.zeros(len(wanted), rows.shape[1], dtype=torch.float64)
    return part.index_add_(0, labels, rows.double())


def _part_by_rank(rows: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Where adding by index has no order: the first members of all clusters, the second, …"""
    which = wanted[labels].nonzero()[:, 0]
    which = which[labels[which].argsort(stable=True)]
    sizes = torch.bincount(labels[which], minlength=len(wanted))
    begins = (sizes.cumsum(0) - sizes)[labels[which]]
    ranks = torch.arange(len(which), device=which.device) - begins
    part = torch.zeros(len(wanted), rows.shape[1], dtype=torch.float64, device=which.device)
    together = torch.bincount(ranks).tolist()
    for members in torch.split(which[ranks.argsort(stable=True)], together):
        part[labels[members]] += rows[members].double()
    return part


def _compiled_part(rows: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
    """Without a float64 copy of the rows."""
    from usl.geometry import kernels

    part = torch.zeros(len(wanted), rows.shape[1], dtype=torch.float64)
    kernels.add_members(rows.numpy(), labels.numpy(), wanted.numpy(), part.numpy())
    return part


def _fill(points: Points, result: Clusters, nonempty: int) -> Clusters:
    """Give empty clusters members until ``nonempty`` clusters have some: exactly B picks need that.

    A pick must not be a copy of another while the pool has images that are none.
    """
    labels, centroids = result.labels.clone(), result.centroids.clone()
    empty = (torch.bincount(labels, minlength=len(centroids)) == 0).nonzero()[:, 0]
    missing = min(nonempty, len(centroids)) - (len(centroids) - len(empty))
    if missing <= 0:
        return result
    first = first_copies(points.host)
    pictures = (first == torch.arange(len(first))).nonzero()[:, 0]
    distances = assigned_distances(points, centroids, labels)
    for cluster in empty[:missing].tolist():
        # Clusters of several pictures, each counted once; else of several copies of one.
        counts = torch.bincount(labels[pictures], minlength=len(centroids))
        copies_only = not (counts > 1).any()
        if copies_only:
            counts = torch.bincount(labels, minlength=len(centroids))
        free = torch.where(counts[labels] > 1, distances, -1.0)
        taken = int((free == free.max()).nonzero()[0])
        labels[taken if copies_only else first == first[taken]] = cluster
        centroids[cluster] = points.host[taken].double()
        distances = torch.minimum(distances, distances_to(points.host, points.host[taken]))
    return Clusters(labels, centroids)


def cluster_by_cluster(labels: Tensor, values: Tensor) -> Tensor:
    """Rows (N,), int64: cluster after cluster, in each by rising value (N,), then by index."""
    order = values.argsort(stable=True)
    return order[labels[order].argsort(stable=True)]


def assigned_distances(points: Points, centroids: Tensor, labels: Tensor) -> Tensor:
    """Exact squared distance of each point to its cluster's centroid, (N,), float64, on the CPU."""
    return distances_to_own(points.host, centroids, labels)
