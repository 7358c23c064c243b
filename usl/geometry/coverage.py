"""How much of the features a few of them cover, and where more of them stop helping."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from usl.geometry.points import UNIT64, Points

SEED = 0
# Points that stand for all of them.
SAMPLE = 4000


def coverage_curve(
    points: Points, picks: Tensor, radius: float, *, beyond: int = 0
) -> tuple[np.ndarray, int]:
    """The share of points within a radius of the first b picks, for b = 1 to B and beyond.

    The picks are put in the order in which each covers most of what is left; after them the points
    themselves, in the same way (greedy maximum coverage, Nemhauser, Wolsey and Fisher, 1978). Of
    many points a sample is counted, drawn with a fixed seed.

    Parameters
    ----------
    points : Points (N, D)
    picks : Tensor (B,), int64
    radius : float
        A squared distance.
    beyond : int
        How many points are taken after the picks, at most, and while they cover anything new.

    Returns
    -------
    shares : ndarray (B + at most beyond,), float64
        Rising, from 0 to 1.
    flattens : int
        The number b at which the curve lies farthest above the straight line from no picks at all
        to its end.
    """
    rows = torch.arange(len(points))
    if len(points) > SAMPLE:
        drawn = np.random.RandomState(SEED).choice(len(points), size=SAMPLE, replace=False)
        rows = torch.from_numpy(np.sort(drawn))
    sample = points.shifted(points.exact[rows.to(points.device)])
    # And the error of products in float64, so that a point is within 0 of itself.
    limit = radius / points.scale**2 + 4 * (points.dim + 16) * UNIT64

    def within(others: Tensor) -> Tensor:
        some = torch.split(others.to(points.device), SAMPLE)
        chosen = (points.shifted(points.exact[part]) for part in some)
        return torch.cat([(torch.cdist(sample, c).square_() <= limit).cpu() for c in chosen], dim=1)

    covered = torch.zeros(len(rows), dtype=torch.bool)
    counts = _greedy(within(picks), covered, len(picks))
    # Picks that cover nothing new.
    counts += [int(covered.sum())] * (len(picks) - len(counts))
    if beyond:
        counts += _greedy(within(rows), covered, beyond)
    shares = np.array(counts) / len(rows)
    line = shares[-1] * np.arange(1, 1 + len(shares)) / len(shares)
    return shares, 1 + int((shares - line).argmax())


def _greedy(within: Tensor, covered: Tensor, most: int) -> list[int]:
    """Rows covered after each choice of a column, while one covers more; notes them in ``covered``.

    ``within`` (n, m), bool, says which rows a column covers.
    """
    gains = (within & ~covered[:, None]).sum(dim=0)
    counts: list[int] = []
    while len(counts) < most and int(gains.max()) > 0:
        new = within[:, gains.argmax()] & ~covered
        covered |= new
        gains -= within[new].sum(dim=0)
        counts.append(int(covered.sum()))
    return counts
