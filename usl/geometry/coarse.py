"""Few clusters of many points, from a k-means of some: where to look, not what to choose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from usl.engines.local import MANY
from usl.geometry.assignment import nearest_centroids
from usl.geometry.kmeans import kmeans
from usl.geometry.points import Points

# So many points of each cluster, about, train them, in so many iterations.
TRAINED_ON, ITERATIONS = 64, 10


@dataclass(frozen=True)
class Coarse:
    """Points by clusters that have some.

    Attributes
    ----------
    members : list of Tensor, int64
        The points of each, ascending.
    centroids : Tensor (C, D), float64
    """

    members: list[Tensor]
    centroids: Tensor

    @cached_property
    def places(self) -> list[Tensor]:
        """Where the points of each are, where all lie in the order of the clusters."""
        sizes = list(map(len, self.members))
        return list(torch.split(torch.arange(sum(sizes)), sizes))

    def in_order(self, points: Points) -> Points:
        """The points in the order of the clusters, so that those of one lie together in a file."""
        return points.ordered(torch.cat(self.members))


def coarse_clusters(points: Points, count: int, *, seed: int = 0) -> Coarse:
    """The clusters, ``count`` or fewer, of the points."""
    step = max(1, len(points) // (count * TRAINED_ON))
    sample = Points(points.host[::step], points.device, engine=points.engine)
    quiet = len(points) <= MANY
    centroids = kmeans(sample, count, seed=seed, iterations=ITERATIONS, quiet=quiet).centroids
    labels = nearest_centroids(points, centroids)
    sizes = torch.bincount(labels, minlength=count)
    order = labels.argsort(stable=True)
    used = sizes.nonzero()[:, 0]
    return Coarse(list(torch.split(order, sizes[used].tolist())), centroids[used])
