"""ActiveFT: points that are trained to spread as the pool does, and the images nearest to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.assignment import Assigner
from usl.geometry.distances import distances_to
from usl.geometry.kmeans import member_sums
from usl.geometry.pairs import cover_step
from usl.geometry.points import Points, as_points, check_budget, fold_sum, same_bits, unit_rows

# As published: iterations and learning rate of Adam, and the temperature.
ITERATIONS, RATE, TEMPERATURE = 300, 1e-3, 0.07


def trained_picks(features: Any, budget: int, *, seed: int) -> Tensor:
    """Train B points on the sphere, then take the image nearest to each (Xie et al., CVPR 2023).

    The loss is ``-mean_i max_c x_i·θ_c / τ + mean_c log Σ_{c'≠c} exp(θ_c·θ_c' / τ)`` (equations 6
    and 7 of arXiv 2303.14382): near the images, far from each other. Features are scaled to length
    1. The points begin as images drawn at random, and have length 1 after each step. The mean is
    over all images up to 16 383, over evenly spaced ones of more.

    Parameters
    ----------
    features : array, tensor or Points, shape (N, D)
        No row of zeros.
    budget : int
        B.
    seed : int

    Returns
    -------
    Tensor (B,), int64
        In the order of the points, each time the nearest image that is not taken; equal distances
        go to the lowest index.

    Raises
    ------
    InputError
        Bad features, or a budget out of range.
    """
    points = as_points(features)
    check_budget(budget, len(points))
    rows = unit_rows(points.host, "features, for ActiveFT,")
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(rows), generator=generator)[:budget]
    theta = rows[start].double()
    points = Points(rows[:: cover_step(len(rows))], points.device, length=1.001)
    assign = Assigner(points)
    every = torch.ones(budget, dtype=torch.bool)
    optimizer = torch.optim.Adam([theta], lr=RATE)
    for _ in tqdm(range(ITERATIONS), desc="steps", delay=2, leave=False, disable=None):
        labels = assign(theta.to(points.device), every.to(points.device), every.to(points.device))
        near = member_sums(points, labels, every.to(points.device)).cpu() / len(points)
        theta.grad = (_spread(theta) - near) / TEMPERATURE
        optimizer.step()
        theta /= fold_sum(theta * theta).sqrt_()[:, None]
    return _nearest(rows, theta)


def _spread(theta: Tensor) -> Tensor:
    """Gradient (B, D) of the second term, times the temperature, the same bits everywhere.

    Products of numbers with few binary places, whose sums are no larger than float64 can hold, are
    exact in whatever order a library adds them.
    """
    size = len(theta)
    if size == 1:
        return torch.zeros_like(theta)
    # Of rows of length 1: sums are at most 1, of multiples of 2^-52.
    short = _places(theta, 26)
    similar = (short @ short.T) / TEMPERATURE
    similar.fill_diagonal_(-torch.inf)
    raised = same_bits(similar - similar.amax(dim=1, keepdim=True), torch.exp)
    share = raised / fold_sum(raised.clone())[:, None]
    # Rows of it have at most the sum B + 1.
    both = _places(share + share.T, 52 - 21 - size.bit_length())
    return both @ _places(theta, 21) / size


def _places(x: Tensor, count: int) -> Tensor:
    """Values with so many binary places."""
    return (x * 2.0**count).round_() / 2.0**count


def _nearest(rows: Tensor, theta: Tensor) -> Tensor:
    picks: list[int] = []
    for target in theta:
        distances = distances_to(rows, target)
        distances[picks] = torch.inf
        picks.append(int(distances.argmin()))
    return torch.tensor(picks)
