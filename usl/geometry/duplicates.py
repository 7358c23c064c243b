"""Points unusually near each other: how near that is, and which of them stands for the others."""

from __future__ import annotations

from decimal import ROUND_DOWN, Context

import numpy as np
import torch
from torch import Tensor

from usl.geometry.neighbors.search import Neighbors
from usl.geometry.points import Points, full_precision, squared_distances

# Interquartile ranges below the lower quartile: Tukey's outer fence.
FENCE = 3.0
# Points whose distances to all others are looked at together.
BLOCK = 256


def nearest_others(neighbors: Neighbors) -> Tensor:
    """Squared distance of every point to its nearest other, (N,), float32; infinite without any."""
    if neighbors.indices.shape[1] < 2:
        return torch.full((len(neighbors.indices),), torch.inf)
    itself = neighbors.indices[:, 0] == torch.arange(len(neighbors.indices))
    # A point whose duplicate comes before it has that in column 0, at the same distance.
    return torch.where(itself, neighbors.distances[:, 1], neighbors.distances[:, 0])


def unusual_nearness(distances: Tensor) -> float:
    """The squared distance under which two points are unusually near each other.

    Parameters
    ----------
    distances : Tensor (N,)
        From :func:`nearest_others`.

    Returns
    -------
    float
        The lower outer fence of the logarithms of the distances above 0, rounded down to three
        digits so that no rounding elsewhere decides; 0 without any. Tukey, Exploratory Data
        Analysis, 1977, section 2D.
    """
    usual = distances[torch.isfinite(distances) & (distances > 0)].double().numpy()
    if not len(usual):
        return 0.0
    low, high = np.quantile(np.log(usual), [0.25, 0.75])
    # Distances may have been rounded up to float32.
    fence = float(np.exp(low - FENCE * (high - low))) * (1 - 1e-6)
    return float(Context(prec=3, rounding=ROUND_DOWN).create_decimal(fence))


def stand_ins(points: Points, distances: Tensor, threshold: float) -> Tensor:
    """Which point stands for each, so that those left are nowhere nearer than a threshold.

    In the order of the points: one that is nearer than the threshold to an earlier one, which
    stands for itself, is stood for by the first such; all others stand for themselves.

    Parameters
    ----------
    points : Points (N, D)
    distances : Tensor (N,)
        Squared, of each to its nearest other.
    threshold : float
        A squared distance.

    Returns
    -------
    Tensor (N,), int64, on the CPU
    """
    first = torch.arange(len(points))
    # Their float32 distances may have been rounded up to the threshold.
    left = (distances <= threshold).nonzero()[:, 0]
    while len(left):
        near = _nearer(points, left[:BLOCK], left, threshold)
        for row, others in zip(left[:BLOCK].tolist(), near, strict=True):
            if first[row] == row:
                stood_for = left[others]
                stood_for = stood_for[(stood_for > row) & (first[stood_for] == stood_for)]
                first[stood_for] = row
        left = left[BLOCK:]
        left = left[first[left] == left]
    return first


def _nearer(points: Points, rows: Tensor, columns: Tensor, threshold: float) -> Tensor:
    """Whether each pair is nearer than the threshold, (n, m), bool, on the CPU."""
    rows, columns = rows.to(points.device), columns.to(points.device)
    x, y = points.norms[rows, None], points.norms[columns]
    with full_precision():
        distances = torch.addmm(y, points.fast[rows], points.fast[columns].T, alpha=-2).add_(x)
    limit = threshold / points.scale**2
    doubt = 1.01 * points.bound.error * (x.sqrt() + y.sqrt()).square_() + points.bound.underflow
    near = distances < limit - doubt
    who, whom = ((distances - limit).abs_() <= doubt).nonzero(as_tuple=True)
    exact = squared_distances(points.exact[rows[who]], points.exact[columns[whom]])
    near[who, whom] = exact < threshold
    return near.cpu()
