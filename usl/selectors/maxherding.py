"""MaxHerding: picks that cover all images, softly (Bae, Noh and Sutherland, ECCV 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from usl.geometry.pairs import SIDE, Gaussian, Pairs, Settled
from usl.geometry.points import as_points, blocks, check_budget, fold_sum

# Images that are evaluated together.
BATCH = 512
# Images that are to be covered, at most about twice as many: of more every second, third, …
REFERENCES = 8192


def herding_picks(features: Any, budget: int, *, squared_width: float | None = None) -> Tensor:
    """Always take the image that adds most to the coverage (arXiv 2407.12212, Algorithm 1).

    The coverage is the sum over images of the largest kernel value to a pick: over all images up to
    16 383, over evenly spaced ones of more. What an image adds never grows, so most are not
    evaluated again (lazy greedy, exact).

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    squared_width : float, optional
        Of the Gaussian kernel ``exp(-d² / (2 · width²))``; default a tenth of the median squared
        distance.

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing; equal gains go to the lowest index.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    pairs = Pairs(points)
    kernel = Gaussian(pairs, squared_width or pairs.median() / 10)
    step = max(1, len(points) // REFERENCES)
    covered = torch.zeros(len(range(0, len(points), step)), dtype=torch.float64)

    def exact_gain(image: int) -> float:
        return float(fold_sum((kernel.row(image, step) - covered).clamp_min_(0)))

    settled = Settled(points, exact_gain)
    error = kernel.error * len(covered)
    free = torch.ones(len(points), dtype=torch.bool)
    # Gains, or what they were at most.
    gains = _gains(kernel, torch.arange(len(points)), covered, step)
    picks: list[int] = []
    for number in range(budget):
        fresh = torch.full((len(points),), number == 0)
        while True:
            stale = torch.where(free & ~fresh, gains, -torch.inf)
            best = torch.where(free & fresh, gains, -torch.inf).max()
            if float(stale.max()) + error < float(best) - error:
                break
            wanted = stale.topk(min(BATCH, len(points))).indices
            wanted = wanted[free[wanted] & ~fresh[wanted]]
            if not len(wanted):
                break
            gains[wanted] = _gains(kernel, wanted, covered, step)
            fresh[wanted] = True
        pick = settled.best(torch.where(fresh, gains, -torch.inf), free, error)
        picks.append(pick)
        free[pick] = False
        covered = torch.maximum(covered, kernel.row(pick, step))
    return torch.tensor(picks)


def _gains(kernel: Gaussian, images: Tensor, covered: Tensor, step: int) -> Tensor:
    """What images (n,) would add to a coverage of every ``step``-th image, from products, (n,)."""
    device = kernel.pairs.rows.device
    covered, parts = covered.to(device), []
    for some in torch.split(images.to(device), SIDE):
        sums = torch.zeros(len(some), dtype=torch.float64, device=device)
        for start, stop in blocks(len(covered), SIDE):
            values = kernel.of(kernel.pairs.squared(some, slice(start * step, stop * step, step)))
            sums += values.sub_(covered[start:stop]).clamp_min_(0).sum(dim=1)
        parts.append(sums)
    return torch.cat(parts).cpu()
