"""Approximate squared distances of many points to many, by the products a CPU makes fastest.

A tile of them is small enough to stay in the cache, and is read there by compiled code.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.geometry import jit, kernels
from usl.geometry.points import BLOCK_ROWS, Bound, Points, blocks

# Points that the others are ordered by.
PIVOTS = 256
SEED = 0
LANES = kernels.LANES
# The rows of a tile are a multiple of this, its columns one of LANES.
ROWS = 8


@dataclass(frozen=True)
class Operand:
    """Vectors as a kind of product takes them, filled up to a multiple of LANES.

    Attributes
    ----------
    vectors, lengths : Tensor or ndarray
    count : int
        How many there are.
    error : float
        No vector is farther from what it stands for.
    """

    vectors: Any
    lengths: Any
    count: int
    error: float

    @property
    def padded(self) -> int:
        """Rows with those that fill it up."""
        return filled_up(self.count)


def filled_up(count: int) -> int:
    """The next multiple of LANES."""
    return -(-count // LANES) * LANES


class Products(ABC):
    """Makes values between vectors of the space of some points."""

    name: str

    def __init__(self, points: Points) -> None:
        self.points = points

    @abstractmethod
    def pack(self, vectors: Tensor, rows: Tensor) -> Operand:
        """Some of the vectors (n, D), none farther from the centre than the farthest point."""

    @abstractmethod
    def bound(self, a: Operand, b: Operand) -> Bound:
        """Of values between these."""

    def values(self, a: Operand, start: int, b: Operand, first: int, tile: Tensor) -> np.ndarray:
        """Put values into a tile (n, m), from ``start`` and ``first`` on; it as an array.

        ``start`` and n are multiples of ROWS, the others of LANES. Nothing is near the columns that
        fill up ``b``.
        """
        self._multiply(a, start, b, first, tile)
        if first + tile.shape[1] > b.count:
            tile[:, b.count - first :] = torch.inf
        out: np.ndarray = tile.numpy()
        return out

    @abstractmethod
    def _multiply(self, a: Operand, start: int, b: Operand, first: int, tile: Tensor) -> None: ...


class Float32(Products):
    """Products of float32 vectors by torch.

    One product of D + 2 terms, ``-2 a·b + ‖a‖² · 1 + 1 · ‖b‖²``, is a value. Its terms add up to at
    most (‖a‖ + ‖b‖)² in size, so that it errs by at most (D + 2) u times this (Higham, Accuracy and
    Stability of Numerical Algorithms, §3.1; u = 2⁻²⁴), the rounding of the lengths by u and that of
    the points by 2 u times this: less than ``points.bound``.
    """

    name = "float32"

    def pack(self, vectors: Tensor, rows: Tensor) -> Operand:
        """See :class:`Products`."""
        count, dim = len(rows), vectors.shape[1]
        packed = self.points.engine.zeros(filled_up(count), dim + 2, dtype=torch.float32)
        packed[:, dim] = 1
        for start, stop in blocks(count):
            some = self.points.shifted(vectors[rows[start:stop]]).float()
            packed[start:stop, :dim] = some
            packed[start:stop, dim + 1] = some.double().square().sum(dim=1)
        return Operand(packed, packed[:, dim + 1], count, 0.0)

    def bound(self, a: Operand, b: Operand) -> Bound:
        """See :class:`Products`."""
        return self.points.bound

    def _multiply(self, a: Operand, start: int, b: Operand, first: int, tile: Tensor) -> None:
        n, m = tile.shape
        rows = a.vectors[start : start + n] * -2
        rows[:, -2], rows[:, -1] = a.lengths[start : start + n], 1
        torch.mm(rows, b.vectors[first : first + m].T, out=tile)


class Int16(Products):
    """Products of vectors of whole numbers, exact in int32, by compiled code.

    A vector of length 1 has 32 000 steps. Rounding moves each vector by some ε, which is measured;
    by the triangle inequality the distance of two rounded vectors is within ε_a + ε_b of their own.
    A value, 2 · (⌊‖a‖²/2⌋ + ⌊‖b‖²/2⌋ - a·b) steps², is at most 2 steps² less than its square, and
    is rounded to float32 three times.
    """

    name = "int16"

    def __init__(self, points: Points) -> None:
        super().__init__(points)
        self.centre = points.centre.numpy()

    @property
    def int16(self) -> Any:
        """The compiled code, which does not travel."""
        from usl.geometry import int16

        return int16

    def pack(self, vectors: Tensor, rows: Tensor) -> Operand:
        """See :class:`Products`."""
        count, dim = len(rows), vectors.shape[1]
        shape = (filled_up(count) // LANES, (dim + 1) // 2, LANES, 2)
        panels = self.points.engine.zeros(*shape, dtype=torch.int16).numpy()
        halves = np.zeros(len(panels) * LANES, np.int32)
        factor = self.int16.STEPS / self.points.scale

        def some(block: tuple[int, int]) -> float:
            start, stop = block
            to = slice(start // LANES, -(-stop // LANES))
            given = (vectors.numpy(), rows[start:stop].numpy(), self.centre, factor)
            return float(self.int16.quantize(*given, panels[to], halves[start:stop]))

        parts = list(blocks(count, BLOCK_ROWS // 4))
        if len(parts) <= 1:
            # Centroids, in every iteration: threads would take longer to begin.
            worst = max(map(some, parts), default=0.0)
        else:
            with jit.threads() as pool:
                worst = max(pool.map(some, parts))
        if worst == np.inf:
            raise ValueError("a vector is longer than the longest of the points")
        # Beyond rounding: that of the coordinates, in float64.
        error = worst**0.5 / self.int16.STEPS * (1 + 1e-6) + 1e-10
        return Operand(panels, halves, count, error)

    def bound(self, a: Operand, b: Operand) -> Bound:
        """See :class:`Products`."""
        return Bound(a.error + b.error, 2.0**-21, 4.0 / self.int16.STEPS**2)

    def _multiply(self, a: Operand, start: int, b: Operand, first: int, tile: Tensor) -> None:
        factor, out = -2.0 / self.int16.STEPS**2, tile.numpy()
        self.int16.multiply(a.vectors, a.lengths, start, b.vectors, b.lengths, first, factor, out)


def products_of(points: Points) -> Products:
    """The faster kind on this CPU."""
    return Int16(points) if jit.int16_works() else Float32(points)


@dataclass(frozen=True)
class Packed:
    """Points, ready for products.

    Attributes
    ----------
    products : Products
    order : Tensor (N,), int64
        Which points these are: those near each other are near each other.
    points : Operand
    norms : Tensor (N,), float32
        Of the points, in this order.
    """

    products: Products
    order: Tensor
    points: Operand
    norms: Tensor


def packed(points: Points) -> Packed:
    """Points for products of the faster kind; made once."""
    if points.packed is None:
        # Of the space alone: what is packed may travel without the points.
        products, order = products_of(points.part(0, 0)), near_together(points)
        host, rows = points.host, order
        if points.spilled:
            host, rows = points.ordered(order).host, torch.arange(len(points))
        vectors = products.pack(host, rows)
        points.packed = Packed(products, order, vectors, points.norms[order])
    ready: Packed = points.packed
    return ready


def near_together(points: Points) -> Tensor:
    """An order of the points in which those near each other are near each other, (N,), int64.

    By the nearest of some of them, which are walked from one to the nearest that is left.
    """
    n = len(points)
    if n <= PIVOTS or points.together:
        return torch.arange(n)
    drawn = torch.from_numpy(np.random.RandomState(SEED).choice(n, PIVOTS, replace=False))
    pivots = points.shifted(points.host[drawn]).float()
    apart = torch.cdist(pivots, pivots)
    walk, left = [0], torch.ones(PIVOTS, dtype=torch.bool)
    for _ in range(PIVOTS - 1):
        left[walk[-1]] = False
        walk.append(int(torch.where(left, apart[walk[-1]], torch.inf).argmin()))
    pivots = pivots[walk]
    norms = pivots.square().sum(dim=1)
    # Made at once: small tensors that stay would break up the memory of large ones that go.
    nearest = torch.empty(n, dtype=torch.int64)
    for start, stop in blocks(n):
        apart = torch.addmm(norms, points.block(start, stop), pivots.T, alpha=-2)
        nearest[start:stop] = apart.argmin(dim=1)
    return nearest.argsort(stable=True)
