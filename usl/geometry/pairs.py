"""All pairs of images, block by block in float64: sums and counts without an N × N matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import torch
from torch import Tensor
from tqdm import tqdm

from usl.geometry.distances import distances_to
from usl.geometry.points import (
    SCRATCH,
    UNIT32,
    UNIT64,
    Points,
    blocks,
    first_copies,
    same_bits,
    squared_distances,
)

# Rows and columns of a block.
SIDE = 2048
# Distances that the median is taken of: of so many rows to each other.
SAMPLE = 1000
# Images that a selection is to cover, at most about twice as many.
REFERENCES = 8192
# Squared distances below this have lost digits.
SMALLEST = torch.finfo(torch.float64).tiny


def cover_step(images: int) -> int:
    """Of how many images one is to be covered: of 1 up to 16 383, then of 2, 3, …"""
    return max(1, images // REFERENCES)


class Pairs:
    """Squared distances of products, in float64 right to some 13 digits, and exact ones.

    Parameters
    ----------
    points : Points
        N of them.
    dtype : torch.dtype
        Of the products: float32 is twice as fast, and right to some 4 digits.

    Attributes
    ----------
    error : float
        How far a squared distance from products may be from the exact one.
    """

    def __init__(self, points: Points, dtype: torch.dtype = torch.float64) -> None:
        self.points = points
        self.rows = torch.empty_like(points.exact, dtype=dtype)
        self.norms = self.rows.new_empty(len(points))
        for start, stop in blocks(len(points)):
            some = self.rows[start:stop]
            some.copy_(points.shifted(points.exact[start:stop]))
            self.norms[start:stop] = some.square().sum(dim=1)
        self.unit = points.scale**2
        unit = UNIT64 if dtype == torch.float64 else UNIT32
        self.error = 8 * (points.dim + 16) * unit * self.unit

    def squared(self, rows: Tensor | slice, columns: Tensor | slice) -> Tensor:
        """Squared distances (n, m), of the dtype of the products, within ``error``."""
        x, y = self.rows[rows], self.rows[columns]
        found = torch.addmm(self.norms[columns][None, :], x, y.T, alpha=-2)
        return found.add_(self.norms[rows][:, None]).clamp_min_(0).mul_(self.unit)

    def upper(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks of rows, of columns that do not come before them, and their distances."""
        parts = [slice(start, stop) for start, stop in blocks(len(self.rows), SIDE)]
        both = list(combinations_with_replacement(parts, 2))
        for rows, columns in tqdm(both, desc="pairs", delay=2, leave=False, disable=None):
            yield rows, columns, self.squared(rows, columns)

    def exact(self, target: Tensor, step: int = 1) -> Tensor:
        """Exact squared distances of every ``step``-th image to one point (D,), float64, CPU."""
        return distances_to(self.points.host[::step], target)

    @cached_property
    def first(self) -> Tensor:
        """For every image the lowest that equals it, (N,), int64, on the CPU."""
        return first_copies(self.points.host)

    def exact_pairs(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Exact squared distances of pairs of images (n,), int64, CPU; those of copies once."""
        n = len(self.points)
        codes, which = torch.unique(self.first[rows] * n + self.first[columns], return_inverse=True)
        found = torch.empty(len(codes), dtype=torch.float64)
        host = self.points.host
        for start, stop in blocks(len(codes), max(1, SCRATCH // self.points.dim)):
            some = codes[start:stop]
            found[start:stop] = squared_distances(host[some // n], host[some % n])
        return found[which]

    def median(self) -> float:
        """Median exact squared distance of some images to each other, evenly spaced rows.

        1, where most of them are copies, or too near each other for float64 to tell.
        """
        step = -(-len(self.points) // SAMPLE)
        some = self.points.host[::step]
        if len(some) < 2:
            return 1.0
        above = torch.cat([squared_distances(some[i + 1 :], some[i]) for i in range(len(some) - 1)])
        median = float(above.median())
        return median if median >= SMALLEST else 1.0


@dataclass(frozen=True)
class Gaussian:
    """The kernel ``k(a, b) = exp(-d²(a, b) / (2 · width²))`` over all images.

    Attributes
    ----------
    pairs : Pairs
    squared_width : float
    """

    pairs: Pairs
    squared_width: float

    @property
    def error(self) -> float:
        """How far a value, or a mean of values, from products may be from the exact one."""
        return self.pairs.error / (2 * self.squared_width) + 1e-12

    def of(self, squared: Tensor) -> Tensor:
        """Kernel values of squared distances, which are overwritten."""
        return squared.mul_(-0.5 / self.squared_width).exp_()

    def means(self) -> Tensor:
        """Mean kernel value of each image to all, (N,), float64, within ``error``, on the CPU."""
        sums = torch.zeros(len(self.pairs.rows), dtype=torch.float64, device=self.pairs.rows.device)
        for rows, columns, squared in self.pairs.upper():
            values = self.of(squared)
            sums[rows] += values.sum(dim=1)
            if rows.start != columns.start:
                sums[columns] += values.sum(dim=0)
        return (sums / len(sums)).cpu()

    def row(self, image: int, step: int = 1) -> Tensor:
        """Exact values of one image to every ``step``-th, float64, the same bits everywhere."""
        squared = self.pairs.exact(self.pairs.points.host[image], step)
        return same_bits(squared.mul_(-0.5 / self.squared_width), torch.exp)


class Settled:
    """The best image by a score that products give within an error.

    Parameters
    ----------
    points : Points
    exact : callable
        Given an image, its exact score. Copies have the same.
    """

    def __init__(self, points: Points, exact: Callable[[int], float]) -> None:
        self.first, self.exact = first_copies(points.host), exact

    def best(self, scores: Tensor, free: Tensor, error: float) -> int:
        """The free image (N,), bool, with the highest exact score; of equal ones the lowest index.

        ``scores`` (N,) are within ``error`` of it.
        """
        scores = torch.where(free, scores, -torch.inf)
        rivals = (scores >= scores.max() - 2 * error).nonzero()[:, 0]
        # Of copies the first that is free.
        stand_ins = dict.fromkeys(self.first[rivals].tolist())
        if len(stand_ins) > 1:
            found = {image: self.exact(image) for image in stand_ins}
            top = max(found.values())
            rivals = rivals[[found[image] == top for image in self.first[rivals].tolist()]]
        return int(rivals[0])
