"""The nearest neighbours of every point and the density they give (the paper, section 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.neighbors.cells import cells_of, search_cells
from usl.geometry.neighbors.search import (
    APPROXIMATE,
    Neighbors,
    Part,
    backend_of,
    empty,
    search,
    settle_all,
    tile_bytes,
)
from usl.geometry.neighbors.torch import propose_rows
from usl.geometry.points import (
    Points,
    as_points,
    first_copies,
    full_precision,
    squared_distances,
    taken_rows,
)
from usl.shards import Shards, resumed

log = logging.getLogger("usl")

# Points that the recall of an approximate search is measured on.
MEASURED = 1000
# Where there are so many times as many points as distinct ones, these are searched first.
COPIES = 4


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
    memory: int | None = None,
    device: str | torch.device = "cpu",
    shards: Path | None = None,
    source: dict[str, Any] | None = None,
) -> Neighbors:
    """Find the exact K nearest neighbours of every point under squared Euclidean distance.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    k : int
        Neighbours of each point, the point itself included; 1 ≤ k ≤ N.
    backend : str
        Which of ``BACKENDS`` proposes candidates, or ``auto``. The result does not depend on it,
        but for ``cells``, which misses some of the nearest.
    memory : int, optional
        Bytes for tiles or lists of the backend. The result does not depend on it.
    device : str or torch.device
        Where to compute, unless ``features`` are Points, which say so themselves.
    shards : Path, optional
        Folder where the results of finished tasks are kept, where there are several; those found
        there are not computed again. The caller removes it once the neighbours are safe.
    source : dict, optional
        What the neighbours depend on. Shards of another source are discarded.

    Returns
    -------
    Neighbors
        On the CPU. Distances are exact in float64 before rounding, and ties go to the lowest index,
        of ``cells`` to the nearest cell.

    Raises
    ------
    InputError
        Bad features, ``k`` out of range, an unknown backend, or too little memory for the result.
    """
    points = as_points(features, device)
    if not 1 <= k <= len(points):
        raise InputError(f"`k` is {k}; choose 1 to {len(points)}, the number of images")
    first = first_copies(points.host)
    distinct = (first == torch.arange(len(first))).nonzero()[:, 0]

    def find(points: Points, k: int) -> Neighbors:
        return _find(points, k, backend, memory, shards, source)

    with full_precision():
        if COPIES * len(distinct) <= len(points):
            return _find_distinct(points, k, first, distinct, find)
        return find(points, k)


def _find(
    points: Points,
    k: int,
    name: str,
    memory: int | None,
    shards: Path | None,
    source: dict[str, Any] | None,
) -> Neighbors:
    if name in APPROXIMATE:
        cells = cells_of(points)
        groups = cells.groups()
        rows = [torch.cat([cells.members[cell] for cell in group]) for group in groups]
        spilled = points.spilled
        near = cells.in_order(points) if spilled else points
        tasks = [partial(cells.task, near, group, k, memory, spilled) for group in groups]
        return _measured(points, _each(points, search_cells, rows, tasks, k, shards, source))
    used, cuts = backend_of(name, points), points.engine.steps(len(points))
    if name == "auto":
        log.info("neighbours by %s", used)
    rows = [torch.arange(*cut) for cut in cuts]
    quiet = len(cuts) > 1
    tasks = [partial(_task, points, cut, k, used, memory, quiet) for cut in cuts]
    return _each(points, search, rows, tasks, k, shards, source)


def _task(
    points: Points, cut: tuple[int, int], k: int, used: str, memory: int | None, quiet: bool
) -> tuple[Any, ...]:
    """The arguments of :func:`search`."""
    return points.handle, *cut, k, used, memory, quiet


def _each(
    points: Points,
    work: Callable[..., Neighbors],
    rows: list[Tensor],
    tasks: Sequence[Callable[[], tuple[Any, ...]]],
    k: int,
    shards: Path | None,
    source: dict[str, Any] | None,
) -> Neighbors:
    """What tasks find, each for some rows; from ``shards`` what is there."""
    if len(tasks) == 1 and work is search:
        only: Neighbors = next(points.engine.map(work, [tasks[0]()]))
        return only
    store = None
    if shards is not None:
        store = Shards(shards, source or {}, list(map(len, rows)), "neighbours")
    result = empty(len(points), k, points.engine)
    found = resumed(points.engine, work, tasks, store)
    with tqdm(total=len(points), desc="neighbours", unit="image", disable=None) as bar:
        for where, columns in zip(rows, found, strict=True):
            for to, values in zip(result, columns, strict=True):
                to[where] = torch.from_numpy(values)
            bar.update(len(where))
    return result


def _measured(points: Points, found: Neighbors) -> Neighbors:
    """What was found, with its recall: the share of the true neighbours of some points."""
    n, k = len(points), found.distances.shape[1]
    drawn = np.random.RandomState(0).choice(n, min(n, MEASURED), replace=False)
    shares = []
    for proposal in propose_rows(points, k, tile_bytes(points), torch.from_numpy(drawn)):
        distances, _, _ = settle_all(points, proposal, k)
        # As near as the last true one: of equal ones any will do.
        hits = found.distances[proposal.rows] <= distances[:, -1:].float().cpu()
        shares.append(hits.double().mean(dim=1))
    share = torch.cat(shares)
    recall = float(share.mean())
    margin = 1.96 * float(share.std(correction=0)) / len(share) ** 0.5
    log.warning(
        "the search is approximate: it found %.2f ± %.2f %% of the neighbours",
        100 * recall,
        100 * margin,
    )
    return replace(found, recall=recall, margin=margin)


def _find_distinct(
    points: Points,
    k: int,
    first: Tensor,
    distinct: Tensor,
    find: Callable[[Points, int], Neighbors],
) -> Neighbors:
    """:func:`_find` where many points are copies: among the distinct ones, each then its copies.

    The K nearest points are copies of the K nearest distinct points: each of these has a copy, and
    one that is as far away as the last of them, but not among them, comes behind all of them.
    """
    few = min(k, len(distinct))
    part = Part(points, 0, empty(len(points), k, points.engine))
    alone = taken_rows(points.host.numpy(), distinct.numpy(), points.engine)
    found = find(Points(alone, points.device, engine=points.engine), few)
    order = torch.argsort(first, stable=True)
    sizes = torch.bincount(first, minlength=len(points))[distinct]
    begins = sizes.cumsum(0) - sizes
    # Of many copies of one vector the first k can count.
    ends = begins + sizes.clamp_max(k)
    for one, (begin, size) in enumerate(zip(begins.tolist(), sizes.tolist(), strict=True)):
        near, apart = found.indices[one], found.distances[one]
        # Copies of these are enough, and of those as far away as the last.
        last = int((ends - begins)[near].cumsum(0).clamp_max(k).argmax())
        near = near[apart <= apart[last]]
        spans = zip(begins[near].tolist(), ends[near].tolist(), strict=True)
        copies = torch.cat([order[b:e] for b, e in spans])
        exact = squared_distances(points.host[copies], points.host[distinct[one]])
        rank = torch.argsort(copies, stable=True)
        rank = rank[torch.argsort(exact[rank], stable=True)][:k]
        members = order[begin : begin + size]
        part.store(members, exact[rank].expand(size, -1), copies[rank].expand(size, -1))
    return replace(part.found, recall=found.recall, margin=found.margin)
