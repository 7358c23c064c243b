"""Settling by compiled code, on a CPU: the exact distances that decide, and no others."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from usl.geometry import kernels
from usl.geometry.jit import threads
from usl.geometry.neighbors.proposal import Proposal
from usl.geometry.points import Points

# Rows that a thread settles at a time.
ROWS = 256


def settle(points: Points, proposal: Proposal, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The k nearest among the candidates of each row, where no point left out can be nearer.

    Parameters
    ----------
    points : Points, on the CPU
    proposal : Proposal
        Its candidates are reordered.
    k : int

    Returns
    -------
    distances : Tensor (n, k), float64
        With the bits of :func:`usl.geometry.points.squared_distances`.
    indices : Tensor (n, k), int64
    settled : Tensor (n,), bool
        The others have no result.
    """
    n = len(proposal.rows)
    distances, indices = np.empty((n, k)), np.empty((n, k), np.int64)
    settled = np.empty(n, bool)
    given = (proposal.rows, proposal.candidates, proposal.fill, proposal.left_out)
    rows, lists, fill, left_out = (tensor.numpy() for tensor in given)
    bound = proposal.bound
    exact, norms = points.host.numpy(), points.norms.numpy()

    def some(start: int) -> None:
        part = slice(start, start + ROWS)
        kernels.settle(
            exact, rows[part], lists[part], fill[part], left_out[part], norms,
            bound.shift, bound.error, bound.underflow, points.scale**2,
            distances[part], indices[part], settled[part],
        )  # fmt: skip

    with threads() as pool:
        list(pool.map(some, range(0, n, ROWS)))
    return torch.from_numpy(distances), torch.from_numpy(indices), torch.from_numpy(settled)
