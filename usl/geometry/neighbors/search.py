"""Exact search: a backend proposes candidates for some points, exact distances decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.engines.local import Local
from usl.errors import InputError
from usl.geometry import jit
from usl.geometry.memory import check_free, free_memory
from usl.geometry.neighbors import faiss as faiss_backend
from usl.geometry.neighbors import keops as keops_backend
from usl.geometry.neighbors import torch as torch_backend
from usl.geometry.neighbors.proposal import Backend, Proposal, indices_of
from usl.geometry.points import (
    SCRATCH,
    Bound,
    Points,
    fold_sum,
    full_precision,
    squared_distances,
)

# A mean distance below this is taken as this: duplicates have 0 and would have infinite density.
SMALLEST = 1e-12

# Bytes of a tile of distances, by the kind of device.
TILE = {"cpu": 1 << 26, "cuda": 1 << 28}
# Bytes that the lists of the compiled backend may take, and that part of the memory that is free.
LISTS, OF_FREE = 1 << 31, 1 / 4
# With fewer points the compiled backend would spend more on beginning than it saves.
FEW = 4096


# Settles a proposal: exact distances and indices (n, k), and of which rows they are final, (n,).
Settle = Callable[[Points, Proposal, int], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Neighbors:
    """The K nearest neighbours of every point, itself included.

    Attributes
    ----------
    distances : Tensor (N, K), float32
        Squared Euclidean distances, ascending.
    indices : Tensor (N, K), int64
        Whose they are; equal distances in the order of the indices, or of ``cells`` in that of the
        cells.
    mean_distances : Tensor (N,), float64
        Mean kNN distance: of the squared distances, before they were rounded to float32.
    recall : float
        Share of the true neighbours that are among them, measured on some points where the search
        is approximate.
    margin : float
        Half of the 95 % confidence interval of that.
    """

    distances: Tensor
    indices: Tensor
    mean_distances: Tensor
    recall: float = 1.0
    margin: float = 0.0

    @property
    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """What has a row for each point."""
        return self.distances, self.indices, self.mean_distances

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.columns)

    @property
    def density(self) -> Tensor:
        """1 / mean kNN distance, (N,), float64; these are clamped from below at 1e-12."""
        return 1.0 / self.mean_distances.clamp_min(SMALLEST)


def backend_of(name: str, points: Points | None = None) -> str:
    """The backend of this name; for ``auto`` the fastest for these points, without any ``torch``.

    Those in ``APPROXIMATE``, which no ``auto`` chooses, are searches of their own.

    Raises
    ------
    InputError
        Unknown, in which case the known names are listed, or one that does not run here.
    """
    if name == "auto":
        many = points is not None and points.device.type == "cpu" and len(points) >= FEW
        return "compiled" if many and jit.works() else "torch"
    if name in APPROXIMATE:
        return name
    if name not in BACKENDS:
        known = ", ".join(("auto", *BACKENDS, *APPROXIMATE))
        raise InputError(f"unknown `backend` {name!r}; choose one of {known}")
    if name == "faiss":
        faiss_backend.check()
    if points is None:
        return name
    if name == "keops":
        keops_backend.check(points.device)
    elif name != "torch" and points.device.type != "cpu":
        raise InputError(f"`backend` {name} is for CPUs, not {points.device}; choose auto")
    elif name == "compiled" and not jit.works():
        raise InputError("`backend` compiled does not run here, as the log says; choose auto")
    return name


def search(
    points: Points,
    start: int,
    stop: int,
    k: int,
    used: str,
    memory: int | None,
    quiet: bool = False,
) -> Neighbors:
    """The neighbours of the points from ``start`` to ``stop``, by a backend that runs here."""
    part = Part(points, start, empty(stop - start, k, points.engine))
    settle = settle_all
    if used != "torch" and points.device.type == "cpu" and jit.works():
        from usl.geometry.neighbors.settling import settle
    tiles = tile_bytes(points)
    with full_precision():
        wanted = memory or (_lists(points.engine) if used == "compiled" else tiles)
        proposals = BACKENDS[used](points, k, wanted, start, stop, quiet=quiet)
        rest = _settled(part, proposals, settle)
        if used != "torch":
            # Rows whose candidates were too few, or too alike for the error of their values.
            proposals = torch_backend.propose_rows(points, k, tiles, rest, quiet=quiet)
            rest = _settled(part, proposals, settle_all)
        _settle_rest(part, rest.to(points.device), quiet)
    return part.found


@dataclass(frozen=True)
class Part:
    """What has been found of some points, from ``start`` on."""

    points: Points
    start: int
    found: Neighbors

    @property
    def k(self) -> int:
        """How many neighbours each has."""
        return self.found.distances.shape[1]

    def store(self, rows: Tensor, distances: Tensor, indices: Tensor) -> None:
        """Keep what was found for some of them: rows (n,), distances and indices (n, K)."""
        where = rows.cpu() - self.start
        self.found.distances[where] = distances.float().cpu()
        self.found.indices[where] = indices.cpu()
        self.found.mean_distances[where] = (fold_sum(distances.clone()) / self.k).cpu()


def empty(n: int, k: int, engine: Local) -> Neighbors:
    """Room for the k neighbours of n points; InputError where there is none."""
    if engine.share is None:
        check_free(n * (12 * k + 8), f"the {k} neighbours of {n} images")
    return Neighbors(
        distances=engine.zeros(n, k, dtype=torch.float32),
        indices=engine.zeros(n, k, dtype=torch.int64),
        mean_distances=engine.zeros(n, dtype=torch.float64),
    )


def tile_bytes(points: Points) -> int:
    """Bytes of a tile of distances where these are."""
    return TILE.get(points.device.type, TILE["cpu"])


def _lists(engine: Local) -> int:
    free = free_memory()
    most = LISTS if free is None else min(LISTS, int(OF_FREE * free))
    return most if engine.share is None else min(most, engine.share)


def _settled(part: Part, proposals: Iterator[Proposal], settle: Settle) -> Tensor:
    """Store the nearest of each row's candidates; the rows where one left out may be nearer."""
    rest = [torch.empty(0, dtype=torch.int64)]
    for proposal in proposals:
        distances, indices, settled = settle(part.points, proposal, part.k)
        part.store(proposal.rows, distances, indices)
        rest.append(proposal.rows[~settled])
    return torch.cat(rest)


def settle_all(points: Points, proposal: Proposal, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact distances to all candidates, sorted by (distance, index); the first ``k``.

    On any device; and whether no point left out can be nearer. As
    :func:`usl.geometry.neighbors.settling.settle`, but rows that are not settled have a result too.
    """
    rows = proposal.rows.to(points.device)
    candidates = indices_of(proposal.candidates).sort(dim=1).values
    exact = torch.empty(candidates.shape, dtype=torch.float64, device=points.device)
    step = max(1, SCRATCH // (candidates.shape[1] * points.dim))
    for a in range(0, len(rows), step):
        exact[a : a + step] = squared_distances(
            points.exact[candidates[a : a + step]], points.exact[rows[a : a + step], None]
        )
    distances, order = exact.sort(dim=1, stable=True)
    distances, indices = distances[:, :k], candidates.gather(1, order[:, :k])
    reach = _reach(points, proposal.bound, rows, distances[:, -1])
    return distances, indices, (proposal.left_out.to(points.device).double() > reach).cpu()


def _reach(points: Points, bound: Bound, rows: Tensor, farthest: Tensor) -> Tensor:
    """The largest value that a point no farther than ``farthest`` can have been given."""
    length = points.norms[rows].double().sqrt() * (1 + 1e-6)
    return bound.reach(length, farthest / points.scale**2)


def _settle_rest(part: Part, rows: Tensor, quiet: bool) -> None:
    """Rows whose candidates may miss a neighbour: take every point within reach instead.

    Points that are the same vector have the same neighbours, so each vector is treated once.
    """
    points, k = part.points, part.k
    if not len(rows):
        return
    _, groups = torch.unique(points.exact[rows], dim=0, return_inverse=True)
    order = groups.argsort(stable=True)
    sizes = torch.bincount(groups).tolist()
    for members in tqdm(order.split(sizes), desc="near ties", unit="row", disable=quiet or None):
        row = rows[members[:1]]
        last = part.found.indices[row.cpu() - part.start, -1].to(points.device)
        farthest = squared_distances(points.exact[last], points.exact[row])
        approximate = torch.addmv(points.norms, points.fast, points.fast[row[0]], alpha=-2)
        approximate += points.norms[row]
        candidates = (approximate <= _reach(points, points.bound, row, farthest)).nonzero().T
        distances, indices = _settle_long(points, row, candidates, k)
        part.store(rows[members], distances, indices)


def _settle_long(points: Points, row: Tensor, candidates: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """:func:`settle_all` for one row with so many candidates that they are taken in pieces."""
    step = max(1, SCRATCH // points.dim)
    parts = torch.split(candidates[0], step)
    exact = torch.cat([squared_distances(points.exact[p], points.exact[row]) for p in parts])
    distances, order = exact.sort(stable=True)
    return distances[None, :k], candidates[0][order[:k]][None]


def _compiled(*given: Any, quiet: bool = False) -> Iterator[Proposal]:
    # Imports numba, which takes its time.
    from usl.geometry.neighbors.compiled import propose

    return propose(*given, quiet=quiet)


BACKENDS: dict[str, Backend] = {
    "torch": torch_backend.propose,
    "compiled": _compiled,
    "keops": keops_backend.propose,
    "faiss": faiss_backend.propose,
}
# Only by name, never by auto.
APPROXIMATE = ("cells",)
