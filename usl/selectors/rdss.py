"""RDSS: picks near all images and far from each other, by kernel herding (Shao et al., 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.pairs import Gaussian, Pairs, Settled
from usl.geometry.points import as_points, check_budget, fold_sum


def rdss_picks(features: Any, budget: int, *, squared_width: float | None = None) -> Tensor:
    """Generalised kernel herding without replacement (NeurIPS 2024, arXiv 2409.11653, Algorithm 1).

    The p-th pick is the image i, none before, that minimises ``F_i - α · μ_i``: F is the mean
    kernel value to the picks, μ that to all images, ``α = 1 - 1 / √B``; the first is where μ is
    largest.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
    budget : int
        B.
    squared_width : float, optional
        Of the Gaussian kernel ``exp(-d² / (2 · width²))``; default a tenth of the median squared
        distance. The authors' code has 1, on features that it does not scale to length 1.

    Returns
    -------
    Tensor (B,), int64
        In the order of choosing; equal values go to the lowest index.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    pairs = Pairs(points)
    kernel = Gaussian(pairs, squared_width or pairs.median() / 10)
    means, alpha = kernel.means(), 1 - 1 / math.sqrt(budget)
    near, known = torch.zeros(len(points), dtype=torch.float64), dict[int, float]()

    def exact_mean(image: int) -> float:
        if image not in known:
            known[image] = float(fold_sum(kernel.row(image))) / len(points)
        return known[image]

    settled = Settled(points, lambda image: share * exact_mean(image) - float(near[image]))
    free = torch.ones(len(points), dtype=torch.bool)
    picks: list[int] = []
    for number in tqdm(range(1, budget + 1), desc="picks", delay=2, leave=False, disable=None):
        share = 1.0 if number == 1 else alpha
        pick = settled.best(share * means - near, free, share * kernel.error)
        picks.append(pick)
        free[pick] = False
        near = near * (1 - 1 / number) + kernel.row(pick) / number
    return torch.tensor(picks)
