"""Candidates for neighbours by KeOps, which compiles the reduction and keeps no distances.

Feydy et al., "Fast geometric learning with symbolic matrices", NeurIPS 2020. It is meant for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from tqdm import tqdm

from usl.errors import InputError
from usl.geometry.neighbors.proposal import Proposal, listed, width_for
from usl.geometry.points import Points

# Rows of one proposal.
HANDED_OVER = 16384
# Its reduction keeps indices as float32.
MOST = 1 << 24


def propose(
    points: Points, k: int, memory: int, start: int, stop: int, *, quiet: bool = False
) -> Iterator[Proposal]:
    """The points with the smallest float32 distances, a few more than k.

    Parameters
    ----------
    points : Points
    k : int
    memory : int
        Not used: no distances are kept.
    start, stop : int
        The points to find candidates for.
    quiet : bool
        Show no progress.

    Notes
    -----
    A sum of D squared differences errs by at most (D + 2) u of itself, which is less than
    (‖a‖ + ‖b‖)², and the rounding of the points by 2 u times this: less than ``points.bound``.
    """
    n, width = len(points), width_for(k, len(points))
    if n > MOST:
        raise InputError(f"`backend` keops counts in float32, up to {MOST} images; choose auto")
    parts = torch.split(torch.arange(start, stop), HANDED_OVER)
    for some in tqdm(parts, desc="neighbours", unit="block", disable=quiet or None):
        values, indices = _smallest(points.fast[some.to(points.device)], points.fast, width)
        yield listed(points, some, values, indices)


def _smallest(x: Tensor, y: Tensor, width: int) -> tuple[Tensor, Tensor]:
    from pykeops.torch import LazyTensor

    apart = ((LazyTensor(x[:, None]) - LazyTensor(y[None])) ** 2).sum(-1)
    values, indices = apart.Kmin_argKmin(width, dim=1)
    return values, indices


@cache
def check(device: torch.device) -> None:
    """Raise InputError unless KeOps computes there, and computes what it should.

    Without CUDA's run-time compiler it silently computes on the CPU.
    """
    try:
        import pykeops

        pykeops.set_verbose(False)
        if device.type == "cuda" and not pykeops.config.gpu_available:
            raise InputError("it finds no CUDA compiler (nvrtc)")
        x = torch.arange(40.0, device=device).square().reshape(20, 2).cos()
        values, indices = _smallest(x, x, 5)
        expected = (x[:, None] - x[None]).square().sum(dim=2)
        if not (
            torch.allclose(values, expected.sort(dim=1).values[:, :5], atol=1e-5)
            and torch.allclose(values, expected.gather(1, indices), atol=1e-5)
        ):
            raise InputError("it finds other neighbours")
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"`backend` keops does not run here ({reason}); choose auto") from None
