"""Features prepared for exact geometry: a fast float32 copy, and distances that never round twice.

Fast float32 products find candidates. Whatever they cannot decide within their rounding error is
settled by :func:`squared_distances`, which is made of elementwise float64 operations only, and so
gives the same bits for every block size, thread count and device.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.errors import InputError

# Rows of one block wherever all rows are visited; a power of two, so that blocks never straddle
# the shards of a later, distributed run.
BLOCK_ROWS = 16384
# Elements of one float64 scratch array: 2 MB, so that it stays in a second-level cache.
SCRATCH = 1 << 18
# Features beyond this have squared distances that float32, in which they are saved, cannot hold.
LARGEST = 1e15
# Rows, about, that the centre is taken from.
CENTRE_ROWS = 1000
UNIT32 = 2.0**-24
UNIT64 = 2.0**-53


def as_features(features: Any, name: str = "features") -> Tensor:
    """Check features and return them as a float32 or float64 tensor on the CPU.

    Parameters
    ----------
    features : array or tensor, shape (N, D)
        Any real dtype. float16 and bfloat16 become float32, integers float64; both are exact.
    name : str
        What to call the array in an error.

    Returns
    -------
    Tensor, shape (N, D), float32 or float64

    Raises
    ------
    InputError
        Not two-dimensional, empty, not numeric, or with NaN or infinite values.
    """
    if isinstance(features, Tensor):
        tensor = features.detach().cpu()
    else:
        array = np.asarray(features)
        if array.dtype.kind not in "fiu":
            raise InputError(f"{name} hold {array.dtype} values; give real numbers")
        if array.dtype.kind in "iu" or array.dtype.itemsize > 8:
            array = array.astype(np.float64)
        with warnings.catch_warnings():
            # Arrays mapped read-only are fine: nothing here writes to its input.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            native = array.astype(array.dtype.newbyteorder("="), copy=False)
            tensor = torch.from_numpy(np.ascontiguousarray(native))
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    elif not tensor.is_floating_point():
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise InputError(f"{name} hold {tensor.dtype} values; give real numbers")
        tensor = tensor.double()
    if tensor.ndim != 2 or 0 in tensor.shape:
        raise InputError(
            f"{name} have shape {tuple(tensor.shape)}; give a table of (images, dimensions)"
        )
    for start, stop in blocks(len(tensor)):
        bad = ~torch.isfinite(tensor[start:stop]).all(dim=1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise InputError(f"{name} have NaN or infinite values, first in row {row}; remove them")
        if tensor[start:stop].abs().max() > LARGEST:
            raise InputError(
                f"{name} have values beyond ±{LARGEST:g}; divide them all by something"
            )
    return tensor.contiguous()


def blocks(n: int, size: int = BLOCK_ROWS) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive blocks that cover ``range(n)``."""
    for start in range(0, n, size):
        yield start, min(start + size, n)


def fold_sum(x: Tensor) -> Tensor:
    """Sum float64 values over the last axis by halving, in one fixed order. Overwrites ``x``.

    Only elementwise additions are used, so the result does not depend on how a library splits a
    reduction between threads or vector lanes.
    """
    width = x.shape[-1]
    while width > 1:
        half = width // 2
        x[..., :half] += x[..., half : 2 * half]
        if width % 2:
            x[..., 0] += x[..., width - 1]
        width = half
    return x[..., 0].clone()


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances in float64 between broadcast rows of ``a`` and ``b``.

    The same two rows give the same bits wherever they stand, so exact duplicates tie exactly.

    Parameters
    ----------
    a, b : Tensor, shapes (…, D) that broadcast

    Returns
    -------
    Tensor, shape (…), float64
    """
    difference = a.double() - b.double()
    return fold_sum(difference.mul_(difference))


def first_argmin(x: Tensor) -> Tensor:
    """Position of the smallest value of each row of ``x`` (n, m); ties go to the lowest."""
    smallest = x.amin(dim=1, keepdim=True)
    places = torch.arange(x.shape[1], device=x.device)
    return torch.where(x == smallest, places, x.shape[1]).amin(dim=1)


class Points:
    """N feature vectors, as given and as a float32 copy for fast products.

    The copy is shifted by a central point, which makes products of far-off features precise again,
    and scaled by a power of two so that the longest vector has a length in (½, 1].

    Parameters
    ----------
    features : array, tensor, shape (N, D)
        See :func:`as_features` for what is accepted.
    device : str or torch.device
        Where distances are computed.

    Attributes
    ----------
    exact : Tensor (N, D), float32 or float64, on ``device``
    host : Tensor (N, D), the same on the CPU, where sums are taken in order
    fast : Tensor (N, D), float32, on ``device``
    norms : Tensor (N,), float32, squared lengths of ``fast``
    """

    def __init__(self, features: Any, device: str | torch.device = "cpu") -> None:
        self.host = as_features(features)
        self.exact = self.host.to(device)
        n = len(self.host)
        # The median of some rows, not the mean of all, which a few outliers would carry away.
        sample = self.host[:: max(1, n // CENTRE_ROWS)].double()
        self.centre = sample.median(dim=0).values.to(device)
        longest = max(
            float((self.exact[a:b].double() - self.centre).norm(dim=1).max()) for a, b in blocks(n)
        )
        self.scale = 2.0 ** np.ceil(np.log2(longest)) if longest > 1e-300 else 1.0
        self.fast = torch.empty(n, self.dim, dtype=torch.float32, device=device)
        for start, stop in blocks(n):
            self.fast[start:stop] = self.shifted(self.exact[start:stop])
        self.norms = (self.fast * self.fast).sum(dim=1)
        # |float32 d² - d²| ≤ error · (‖a‖ + ‖b‖)², the standard bound for a dot product of D terms
        # (Higham, Accuracy and Stability of Numerical Algorithms, §3.1) and a few roundings more.
        self.error = (self.dim + 16) * UNIT32

    def __len__(self) -> int:
        return len(self.host)

    @property
    def dim(self) -> int:
        """Number of feature dimensions D."""
        return self.host.shape[1]

    @property
    def device(self) -> torch.device:
        """Where distances are computed."""
        return self.exact.device

    def shifted(self, rows: Tensor) -> Tensor:
        """Rows (n, D) minus the centre, divided by the scale, in float64."""
        return (rows.double() - self.centre) / self.scale


def as_points(features: Any, device: str | torch.device = "cpu") -> Points:
    """Return ``features`` if they are :class:`Points` already, else prepare them."""
    return features if isinstance(features, Points) else Points(features, device)
