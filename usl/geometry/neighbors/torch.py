"""Candidates for neighbours by float32 matrix products, on any device of torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.neighbors.proposal import Proposal, listed, width_for
from usl.geometry.points import Points

# Columns of one tile of float32 distances.
TILE_COLUMNS = 65536


def propose(
    points: Points, k: int, memory: int, start: int, stop: int, *, quiet: bool = False
) -> Iterator[Proposal]:
    """The points with the smallest float32 distances, a few more than k, tile by tile.

    Parameters
    ----------
    points : Points
    k : int
    memory : int
        Bytes for one tile of distances.
    start, stop : int
        The points to find candidates for.
    quiet : bool
        Show no progress.

    Notes
    -----
    The error is that of a float32 dot product of D terms, see :class:`usl.geometry.points.Points`.
    """
    # Made once; for scattered rows its blocks are made as they are needed.
    _ = points.fast
    yield from propose_rows(points, k, memory, torch.arange(start, stop), quiet=quiet)


def propose_rows(
    points: Points, k: int, memory: int, rows: Tensor, *, quiet: bool = False
) -> Iterator[Proposal]:
    """:func:`propose` for some points (n,), int64."""
    n = len(points)
    width = width_for(k, n)
    rows_at_once = max(1, memory // (4 * min(n, TILE_COLUMNS)))
    starts = range(0, len(rows), rows_at_once)
    for start in tqdm(starts, desc="neighbours", unit="block", disable=quiet or None):
        part = rows[start : start + rows_at_once]
        values, candidates = _smallest(points, part.to(points.device), width, memory)
        yield listed(points, part, values, candidates)


def _smallest(points: Points, rows: Tensor, width: int, memory: int) -> tuple[Tensor, Tensor]:
    x, x_norms = points.shifted(points.exact[rows]).float(), points.norms[rows]
    best: tuple[Tensor, Tensor] | None = None
    columns = max(width, min(TILE_COLUMNS, memory // (4 * len(rows))))
    for start in range(0, len(points), columns):
        y = points.block(start, min(len(points), start + columns))
        tile = torch.addmm(points.norms[start : start + columns], x, y.T, alpha=-2)
        values, indices = tile.topk(min(width, len(y)), dim=1, largest=False, sorted=False)
        indices += start
        if best is not None:
            values, indices = torch.cat([best[0], values], 1), torch.cat([best[1], indices], 1)
            keep = values.topk(width, dim=1, largest=False, sorted=False)
            values, indices = keep.values, indices.gather(1, keep.indices)
        best = values, indices
    assert best is not None
    return best[0] + x_norms[:, None], best[1]
