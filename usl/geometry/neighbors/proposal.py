"""What a backend of neighbours hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from usl.geometry.points import Bound, Points


@dataclass(frozen=True)
class Proposal:
    """Candidates for the neighbours of some points.

    Values are approximate squared distances in the units of ``points.fast``, not negative. A
    candidate is one number: the bits of its value, float32, above, and its index in the 32 bits
    below; so they are in the order of their values.

    Attributes
    ----------
    rows : Tensor (n,), int64
        The points.
    candidates : Tensor (n, w), int64
    fill : Tensor (n,), int32
        How many of the w count.
    left_out : Tensor (n,), float32
        No point that is no candidate has a smaller value.
    bound : Bound
        How far values may be from the truth.
    """

    rows: Tensor
    candidates: Tensor
    fill: Tensor
    left_out: Tensor
    bound: Bound


def width_for(k: int, n: int) -> int:
    """How many candidates: a few more than k, so that rounding does not reach the last."""
    return min(n, k + 16 + k // 16)


def listed(points: Points, rows: Tensor, values: Tensor, indices: Tensor) -> Proposal:
    """What a library found by products of ``points.fast``: values (n, w) and whose they are."""
    n, width = values.shape
    bits = values.clamp_min(0).contiguous().view(torch.int32).long()
    left_out = torch.full((n,), torch.inf, device=values.device)
    if width < len(points):
        left_out = values.amax(dim=1)
    candidates = (bits << 32) | indices
    fill = torch.full((n,), width, dtype=torch.int32, device=values.device)
    return Proposal(rows, candidates, fill, left_out, points.bound)


def indices_of(candidates: Tensor) -> Tensor:
    """Whose candidates are, int64."""
    return candidates & 0xFFFFFFFF


# (points, k, memory in bytes, start, stop, quiet=): candidates for these points, in some order.
Backend = Callable[..., Iterator[Proposal]]
