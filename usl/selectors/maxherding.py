"""MaxHerding: picks that cover all images, softly (Bae, Noh and Sutherland, ECCV 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.pairs import SIDE, Gaussian, Pairs, Settled, cover_step
from usl.geometry.points import Points, as_points, blocks, check_budget, fold_sum

# Images that are evaluated together.
BATCH = 512


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
    kernel, step = soft_coverage(points, squared_width)
    references = torch.arange(0, len(points), step)
    covered = torch.zeros(len(references), dtype=torch.float64)

    def exact_gain(image: int) -> float:
        return float(fold_sum((kernel.row(image, step) - covered).clamp_min_(0)))

    settled = Settled(points, exact_gain)
    error = kernel.error * len(covered)
    free = torch.ones(len(points), dtype=torch.bool)
    # Gains, or what they were at most.
    gains = coverage_gains(kernel, torch.arange(len(points)), references, covered)
    picks: list[int] = []
    for number in tqdm(range(budget), desc="picks", delay=2, leave=False, disable=None):
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
            gains[wanted] = coverage_gains(kernel, wanted, references, covered)
            fresh[wanted] = True
        pick = settled.best(torch.where(fresh, gains, -torch.inf), free, error)
        picks.append(pick)
        free[pick] = False
        covered = torch.maximum(covered, kernel.row(pick, step))
    return torch.tensor(picks)


def soft_coverage(points: Points, squared_width: float | None) -> tuple[Gaussian, int]:
    """The kernel of the coverage, and its step: every ``step``-th image is to be covered."""
    pairs = Pairs(points)
    step = cover_step(len(points))
    return Gaussian(pairs, squared_width or pairs.median() / 10), step


def coverage_gains(kernel: Gaussian, images: Tensor, references: Tensor, covered: Tensor) -> Tensor:
    """What images would add to a coverage, from products, float64.

    Parameters
    ----------
    kernel : Gaussian
    images : Tensor (n,), int64
    references : Tensor (m,), int64
        Images to be covered.
    covered : Tensor (m,), float64
        Their largest kernel values to a pick so far.

    Returns
    -------
    Tensor (n,), float64, on the CPU, within m times the error of the kernel
    """
    device = kernel.pairs.rows.device
    references, covered, parts = references.to(device), covered.to(device), []
    shares = torch.split(images.to(device), SIDE)
    for some in tqdm(shares, desc="coverage", delay=2, leave=False, disable=None):
        sums = torch.zeros(len(some), dtype=torch.float64, device=device)
        for start, stop in blocks(len(covered), SIDE):
            values = kernel.of(kernel.pairs.squared(some, references[start:stop]))
            sums += values.sub_(covered[start:stop]).clamp_min_(0).sum(dim=1)
        parts.append(sums)
    return torch.cat(parts).cpu()
