"""Neighbours among the points of nearby cells only: not exact, but for pools beyond exact search.

The inverted file of Jégou, Douze and Schmid, "Product quantization for nearest neighbor search",
2011: cells are the clusters of a coarse k-means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from usl.geometry.coarse import Coarse, coarse_clusters
from usl.geometry.distances import distances_to
from usl.geometry.neighbors.search import Neighbors, backend_of, search
from usl.geometry.points import Points

# Points of a cell, about; and how many cells are searched for those of one, itself included.
POINTS, SEARCHED = 1024, 16
# Cells of a task.
TOGETHER = 64


@dataclass(frozen=True)
class Cells(Coarse):
    """Cells that have some points."""

    def groups(self) -> list[range]:
        """The cells of each task."""
        count = len(self.members)
        return [range(a, min(a + TOGETHER, count)) for a in range(0, count, TOGETHER)]

    def task(
        self, points: Points, group: range, k: int, memory: int | None, in_order: bool = False
    ) -> tuple[Any, ...]:
        """The arguments of :func:`search_cells` for some cells.

        ``in_order``: the points lie cell after cell.
        """
        cells = []
        for cell in group:
            near = self._searched(cell, k)
            names = torch.cat([self.members[one] for one in near])
            places = torch.cat([self.places[one] for one in near]) if in_order else names
            cells.append((places, names, len(self.members[cell])))
        return points.handle, cells, k, memory

    def _searched(self, cell: int, k: int) -> list[int]:
        """The cells that are searched for the points of one, itself first; of k points or more."""
        near: list[int] = []
        count = 0
        apart = distances_to(self.centroids, self.centroids[cell])
        # Itself is nearest, also of centroids that are equal.
        apart[cell] = -1.0
        for other in apart.argsort(stable=True).tolist():
            if len(near) >= SEARCHED and count >= k:
                break
            near.append(other)
            count += len(self.members[other])
        return near


def cells_of(points: Points) -> Cells:
    """Cells of about POINTS points."""
    found = coarse_clusters(points, max(1, round(len(points) / POINTS)))
    return Cells(found.members, found.centroids)


def search_cells(
    points: Points, cells: list[tuple[Tensor, Tensor, int]], k: int, memory: int | None
) -> Neighbors:
    """The neighbours of the points of some cells, cell after cell.

    Parameters
    ----------
    points : Points
    cells : list of (Tensor (n,), int64, Tensor (n,), int64, and int)
        The points that are searched for those of each cell, which are the first so many: where they
        are, and what they are called in the result.
    k : int
    memory : int, optional
        Bytes for lists or tiles.

    Returns
    -------
    Neighbors
        Distances are exact; equal ones are in the order of the cells.
    """
    found = []
    for places, names, count in cells:
        some = points.taken(places)
        near = search(some, 0, count, k, backend_of("auto", some), memory, quiet=True)
        found.append((near.distances, names[near.indices], near.mean_distances))
    distances, indices, means = (torch.cat(columns) for columns in zip(*found, strict=True))
    return Neighbors(distances, indices, means)
