"""Exact nearest neighbours and the density they give (method of the paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.neighbors import torch as torch_backend
from usl.geometry.neighbors.torch import TILE_BYTES, TILE_COLUMNS
from usl.geometry.points import SCRATCH, Points, as_points, fold_sum, squared_distances

# A mean distance below this is taken as this: duplicates have 0 and would have infinite density.
SMALLEST = 1e-12

# (points, rows (n,), width, tile_bytes) to approximate squared distances in the units of
# ``points.fast``, within ``points.error``, and the points they belong to, both (n, width), such
# that no point left out has a smaller approximate distance than those returned.
Backend = Callable[[Points, Tensor, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Neighbors:
    """The K nearest neighbours of every point, itself included.

    Attributes
    ----------
    distances : Tensor (N, K), float32
        Squared Euclidean distances, ascending.
    indices : Tensor (N, K), int64
        Whose they are; equal distances in the order of the indices.
    mean_distances : Tensor (N,), float64
        Mean kNN distance: of the squared distances, before they were rounded to float32.
    """

    distances: Tensor
    indices: Tensor
    mean_distances: Tensor

    @property
    def density(self) -> Tensor:
        """1 / mean kNN distance, (N,), float64; these are clamped from below at 1e-12."""
        return 1.0 / self.mean_distances.clamp_min(SMALLEST)


def itself_first(indices: Tensor) -> Tensor:
    """Neighbours with the point itself in column 0, where its duplicates may have come before it.

    (N, K) to (N, K), int64. A point that is not among its neighbours replaces the last one.
    """
    rows = torch.arange(len(indices))[:, None]
    others = indices != rows
    # Stable: those that are others keep their order; the point itself moves to the end.
    order = torch.sort(others.int(), dim=1, descending=True, stable=True).indices
    return torch.cat([rows, indices.gather(1, order)[:, :-1]], dim=1)


def find_neighbors(
    features: Any,
    k: int,
    *,
    backend: str = "auto",
    tile_bytes: int = TILE_BYTES,
    device: str | torch.device = "cpu",
) -> Neighbors:
    """Find the exact K nearest neighbours of every point under squared Euclidean distance.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    k : int
        Neighbours of each point, the point itself included; 1 ≤ k ≤ N.
    backend : str
        Which of ``BACKENDS`` proposes candidates, or ``auto``. The result does not depend on it.
    tile_bytes : int
        Memory for one tile of float32 distances. The result does not depend on it.
    device : str or torch.device
        Where to compute, unless ``features`` are Points, which say so themselves.

    Returns
    -------
    Neighbors
        On the CPU. Distances are exact in float64 before rounding, and ties go to the lowest index.

    Raises
    ------
    InputError
        Bad features, ``k`` out of range, or an unknown backend.
    """
    points = as_points(features, device)
    if not 1 <= k <= len(points):
        raise InputError(f"`k` is {k}; choose 1 to {len(points)}, the number of images")
    return _find(points, k, backend_of(backend), tile_bytes)


def backend_of(name: str) -> Backend:
    """The backend of this name; ``auto`` takes the fastest here, today always ``torch``.

    Raises
    ------
    InputError
        Unknown; the known names are listed.
    """
    if name == "auto":
        return BACKENDS["torch"]
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS))
        raise InputError(f"unknown `backend` {name!r}; choose one of {known}")
    return BACKENDS[name]


def _find(points: Points, k: int, propose: Backend, tile_bytes: int) -> Neighbors:
    n = len(points)
    result = Neighbors(
        distances=torch.empty(n, k, dtype=torch.float32),
        indices=torch.empty(n, k, dtype=torch.int64),
        mean_distances=torch.empty(n, dtype=torch.float64),
    )
    # More candidates than asked for: the rounding error of float32 must not reach the last.
    width = min(n, k + 16 + k // 16)
    rows_at_once = max(1, tile_bytes // (4 * min(n, TILE_COLUMNS)))
    unsettled = []
    for start in tqdm(range(0, n, rows_at_once), desc="neighbours", unit="block", disable=None):
        rows = torch.arange(start, min(start + rows_at_once, n), device=points.device)
        values, candidates = propose(points, rows, width, tile_bytes)
        distances, indices = _settle(points, rows, candidates, k)
        _store(result, rows, distances, indices)
        if width < n:
            reach = _reach(points, rows, distances[:, -1])
            unsettled.append(rows[values.amax(dim=1).double() <= reach])
    if unsettled:
        _settle_rest(points, torch.cat(unsettled), k, result)
    return result


def _settle(points: Points, rows: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact distances to the candidates, sorted by (distance, index); the first ``k``."""
    candidates = candidates.sort(dim=1).values
    exact = torch.empty(candidates.shape, dtype=torch.float64, device=points.device)
    step = max(1, SCRATCH // (candidates.shape[1] * points.dim))
    for a in range(0, len(rows), step):
        exact[a : a + step] = squared_distances(
            points.exact[candidates[a : a + step]], points.exact[rows[a : a + step], None]
        )
    distances, order = exact.sort(dim=1, stable=True)
    return distances[:, :k], candidates.gather(1, order[:, :k])


def _reach(points: Points, rows: Tensor, farthest: Tensor) -> Tensor:
    """The largest float32 value that a point no farther than ``farthest`` can have been given.

    With r the length of the row and d the distance, the other point is no longer than r + d, so
    the error is at most ``error · (2r + d)²``.
    """
    d = farthest / points.scale**2
    r = points.norms[rows].double().sqrt() * (1 + 1e-6)
    return d + points.error * (2 * r + d.sqrt()) ** 2


def _settle_rest(points: Points, rows: Tensor, k: int, result: Neighbors) -> None:
    """Rows whose candidates may miss a neighbour: take every point within reach instead.

    Points that are the same vector have the same neighbours, so each vector is treated once.
    """
    if not len(rows):
        return
    _, groups = torch.unique(points.exact[rows], dim=0, return_inverse=True)
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups).tolist()
    for members in tqdm(order.split(sizes), desc="near ties", unit="row", disable=None):
        row = rows[members[:1]]
        farthest = squared_distances(
            points.exact[result.indices[row.cpu(), -1].to(points.device)], points.exact[row]
        )
        approximate = torch.addmv(points.norms, points.fast, points.fast[row[0]], alpha=-2)
        approximate += points.norms[row]
        candidates = (approximate <= _reach(points, row, farthest)).nonzero().T
        distances, indices = _settle_long(points, row, candidates, k)
        _store(result, rows[members], distances, indices)


def _settle_long(points: Points, row: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`_settle` for one row with so many candidates that they are taken in pieces."""
    step = max(1, SCRATCH // points.dim)
    parts = torch.split(candidates[0], step)
    exact = torch.cat([squared_distances(points.exact[p], points.exact[row]) for p in parts])
    distances, order = exact.sort(stable=True)
    return distances[None, :k], candidates[0][order[:k]][None]


def _store(result: Neighbors, rows: Tensor, distances: Tensor, indices: Tensor) -> None:
    k = distances.shape[1]
    where = rows.cpu()
    result.distances[where] = distances.float().cpu()
    result.indices[where] = indices.cpu()
    result.mean_distances[where] = (fold_sum(distances.clone()) / k).cpu()


BACKENDS: dict[str, Backend] = {"torch": torch_backend.propose}
