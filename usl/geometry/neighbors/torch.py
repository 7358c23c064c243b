"""Candidates for neighbours by float32 matrix products, on any device of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from usl.geometry.points import Points

# Columns of one tile of float32 distances, and its bytes.
TILE_COLUMNS = 65536
TILE_BYTES = 1 << 26


def propose(points: Points, rows: Tensor, width: int, tile_bytes: int) -> tuple[Tensor, Tensor]:
    """Float32 distances of ``rows`` to all points, tile by tile; the ``width`` smallest of each.

    Parameters
    ----------
    points : Points
    rows : Tensor (n,), int64, on the device of ``points``
    width : int
        Candidates of each row.
    tile_bytes : int
        Memory for one tile of distances.

    Returns
    -------
    values : Tensor (n, width), float32
        Squared distances in the units of ``points.fast``. Their error is that of a float32 dot
        product of D terms, ``points.error``.
    candidates : Tensor (n, width), int64
    """
    x, x_norms = points.fast[rows], points.norms[rows]
    best: tuple[Tensor, Tensor] | None = None
    columns = max(width, min(TILE_COLUMNS, tile_bytes // (4 * len(rows))))
    for start in range(0, len(points), columns):
        y = points.fast[start : start + columns]
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
