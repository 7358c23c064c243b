"""Neighbours among the points of nearby cells only: not exact, but for pools beyond exact search.

The inverted file of Jégou, Douze and Schmid, "Product quantization for nearest neighbor search",
2011: cells are the clusters of a coarse k-means.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.assignment import nearest_centroids
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.search import Neighbors, backend_of, empty, search
from usl.geometry.points import Points, squared_distances

# Points of a cell, about; and how many cells are searched for those of one, itself included.
POINTS, SEARCHED = 1024, 16
# So many points of each cell, about, train them, in so many iterations.
TRAINED_ON, ITERATIONS = 64, 10


@dataclass(frozen=True)
class Cells:
    """Points by cells that have some.

    Attributes
    ----------
    members : list of Tensor, int64
        The points of each, ascending.
    nearest : Tensor (C, C), int64
        The cells, from each outwards: itself first.
    """

    members: list[Tensor]
    nearest: Tensor

    def searched(self, cell: int, k: int) -> list[Tensor]:
        """The points that are searched for those of a cell, its own first; k or more."""
        near: list[Tensor] = []
        count = 0
        for other in self.nearest[cell].tolist():
            if len(near) >= SEARCHED and count >= k:
                break
            near.append(self.members[other])
            count += len(near[-1])
        return near


def find_in_cells(points: Points, k: int, memory: int | None) -> Neighbors:
    """The k nearest of each point among those of its cell and the nearest cells.

    Parameters
    ----------
    points : Points
    k : int
    memory : int, optional
        Bytes for lists or tiles.

    Returns
    -------
    Neighbors
        Distances are exact; equal ones are in the order of the cells. The same for every engine.
    """
    cells = cells_of(points)
    tasks = (
        (points.handle, *_rows_of(cells.searched(cell, k)), k, memory)
        for cell in range(len(cells.members))
    )
    found, result = points.engine.map(_search, tasks), empty(len(points), k)
    with tqdm(total=len(points), desc="neighbours", unit="image", disable=None) as bar:
        for members, part in zip(cells.members, found, strict=True):
            for to, values in zip(result.columns, part.columns, strict=True):
                to[members] = values
            bar.update(len(members))
    return result


def cells_of(points: Points) -> Cells:
    """Cells of about POINTS points."""
    count = max(1, round(len(points) / POINTS))
    step = max(1, len(points) // (count * TRAINED_ON))
    sample = Points(points.host[::step], points.device)
    coarse = kmeans(sample, count, seed=0, iterations=ITERATIONS, quiet=True).centroids
    labels = nearest_centroids(points, coarse)
    sizes = torch.bincount(labels, minlength=count)
    order = labels.argsort(stable=True)
    used = sizes.nonzero()[:, 0]
    apart = squared_distances(coarse[used, None], coarse[used])
    # Itself is nearest, also of centroids that are equal.
    apart.fill_diagonal_(-1.0)
    return Cells(list(torch.split(order, sizes[used].tolist())), apart.argsort(dim=1, stable=True))


def _rows_of(searched: list[Tensor]) -> tuple[Tensor, int]:
    return torch.cat(searched), len(searched[0])


def _search(points: Points, rows: Tensor, count: int, k: int, memory: int | None) -> Neighbors:
    """The neighbours of the first of some rows among all of these."""
    some = points.taken(rows)
    found = search(some, 0, count, k, backend_of("auto", some), memory)
    return Neighbors(found.distances, rows[found.indices], found.mean_distances)
