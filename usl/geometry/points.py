"""Features prepared for exact geometry, and distances that never round twice.

Fast products, in float32 or less, find candidates. Whatever they cannot decide within their error
is settled by :func:`squared_distances`, which is made of elementwise float64 operations only, and
so gives the same bits for every block size, thread count and device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from usl.engines.local import LOCAL, Local, tensor_of
from usl.errors import InputError

# Rows of one block wherever all rows are visited; a power of two, so that blocks never straddle
# the shards of a later, distributed run.
BLOCK_ROWS = 16384
# Elements of one float64 scratch array: 2 MB, so that it stays in a second-level cache.
SCRATCH = 1 << 18
# Values that :func:`same_bits` takes at once: whole registers, and too few for torch to share among
# threads.
AT_ONCE = 1 << 14
# Features beyond this have squared distances that float32, in which they are saved, cannot hold.
LARGEST = 1e15
# Rows that an error lists before it stops.
SHOWN = 10
# Rows, about, that the centre is taken from.
CENTRE_ROWS = 1000
UNIT32 = 2.0**-24
UNIT64 = 2.0**-53


def as_features(
    features: Any,
    name: str = "features",
    *,
    rows: np.ndarray | None = None,
    engine: Local = LOCAL,
) -> Tensor:
    """Check features and return them as a float32 or float64 tensor on the CPU.

    Parameters
    ----------
    features : array or tensor, shape (N, D)
        Any real dtype. float16 and bfloat16 become float32, integers float64; both are exact.
    name : str
        What to call the array in an error.
    rows : ndarray (N,), int64, optional
        What to call its rows in an error; default 0 to N - 1.
    engine : Local or another engine
        Has room for a copy, where one is needed.

    Returns
    -------
    Tensor, shape (N, D), float32 or float64

    Raises
    ------
    InputError
        Not two-dimensional, empty, not numeric, or with NaN or infinite values.
    """
    table: Any = features.detach().cpu() if isinstance(features, Tensor) else np.asarray(features)
    kind = table.dtype
    if isinstance(table, Tensor):
        if kind.is_complex or kind == torch.bool:
            raise InputError(f"{name} hold {kind} values; give real numbers")
        double = kind == torch.float64 or not kind.is_floating_point
        ready = kind in (torch.float32, torch.float64) and table.is_contiguous()
    else:
        if kind.kind not in "fiu":
            raise InputError(f"{name} hold {kind} values; give real numbers")
        double = kind.kind in "iu" or kind.itemsize > 4
        ready = kind in (np.float32, np.float64) and kind.isnative and table.flags.c_contiguous
    if table.ndim != 2 or 0 in table.shape:
        raise InputError(
            f"{name} have shape {tuple(table.shape)}; give a table of (images, dimensions)"
        )
    if ready:
        tensor = table if isinstance(table, Tensor) else tensor_of(table)
    else:
        tensor = engine.zeros(*table.shape, dtype=torch.float64 if double else torch.float32)
        to = tensor if isinstance(table, Tensor) else tensor.numpy()
        for start, stop in blocks(len(table)):
            to[start:stop] = table[start:stop]
    bad = not_finite(tensor)
    if len(bad):
        bad = bad if rows is None else torch.from_numpy(rows)[bad]
        first = ", ".join(map(str, bad[:SHOWN].tolist())) + (", …" if len(bad) > SHOWN else "")
        raise InputError(
            f"{name} have NaN or infinite values in {len(bad)} of {len(tensor)} rows ({first}); "
            "mend or leave out these rows"
        )
    if any(tensor[start:stop].abs().max() > LARGEST for start, stop in blocks(len(tensor))):
        raise InputError(f"{name} have values beyond ±{LARGEST:g}; divide them all by something")
    return tensor


def not_finite(features: Tensor) -> Tensor:
    """Rows of features (N, D) with NaN or infinite values, ascending, int64."""
    bad = torch.zeros(len(features), dtype=torch.bool)
    for start, stop in blocks(len(features)):
        bad[start:stop] = ~torch.isfinite(features[start:stop]).all(dim=1)
    return bad.nonzero()[:, 0]


def first_copies(features: Tensor) -> Tensor:
    """For every row the lowest row that equals it exactly, (N,), int64; 0.0 equals -0.0.

    Parameters
    ----------
    features : Tensor (N, D), float32 or float64, on the CPU
    """
    n, dim = features.shape
    kind = np.uint32 if features.dtype == torch.float32 else np.uint64
    factors = np.random.RandomState(0).randint(0, 2**63, size=dim).astype(np.uint64) * 2 + 1
    hashes = np.empty(n, dtype=np.uint64)
    for start, stop in blocks(n, max(1, SCRATCH // dim)):
        # Adding 0.0 makes 0.0 of -0.0, whose bits are others.
        bits = (features[start:stop] + 0.0).numpy().view(kind).astype(np.uint64)
        bits ^= bits >> np.uint64(17)
        hashes[start:stop] = (bits * factors).sum(axis=1, dtype=np.uint64)
    order = torch.from_numpy(np.argsort(hashes, kind="stable"))
    ordered = hashes[order.numpy()]
    first = torch.arange(n)
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[begins[1:], n]
    several = ends - begins > 1
    for begin, end in zip(begins[several], ends[several], strict=True):
        rows = order[begin:end]
        # Equal rows have equal hashes; the reverse is all but certain, and checked.
        while len(rows) > 1:
            equal = (features[rows] == features[rows[0]]).all(dim=1)
            first[rows[equal]] = rows[0]
            rows = rows[~equal]
    return first


@dataclass(frozen=True)
class Oddities:
    """What a person should know about features before they trust picks from them.

    Attributes
    ----------
    zeros : int
        Rows whose values are all 0.
    copies : int
        Rows that equal an earlier row exactly.
    constants : int
        Columns with one value in all rows.
    """

    zeros: int
    copies: int
    constants: int

    def remarks(self) -> list[str]:
        """A sentence for each that is there."""
        found = (
            (self.zeros, "rows are all zeros"),
            (self.copies, "rows are exact copies of earlier rows"),
            (self.constants, "columns have the same value in every row"),
        )
        return [f"{count} {text}" for count, text in found if count]


def oddities(features: Tensor) -> Oddities:
    """Count rows of zeros, exact copies and constant columns of features (N, D) on the CPU."""
    zeros, constant = 0, torch.ones(features.shape[1], dtype=torch.bool)
    for start, stop in blocks(len(features)):
        zeros += int((features[start:stop] == 0).all(dim=1).sum())
        constant &= (features[start:stop] == features[0]).all(dim=0)
    copies = int((first_copies(features) != torch.arange(len(features))).sum())
    return Oddities(zeros, copies, int(constant.sum()) if len(features) > 1 else 0)


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


def same_bits(values: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """An elementwise function that gives the same bits wherever a value stands.

    What is left over after the last full vector register may go another way in torch, as may the
    parts that it hands to threads, so there is neither.
    """
    flat, out = values.flatten(), torch.empty_like(values).flatten()
    for start, stop in blocks(len(flat), AT_ONCE):
        some = torch.ones(AT_ONCE, dtype=flat.dtype, device=flat.device)
        some[: stop - start] = flat[start:stop]
        out[start:stop] = function(some)[: stop - start]
    return out.view_as(values)


def taken_rows(values: np.ndarray, rows: np.ndarray, engine: Local = LOCAL) -> np.ndarray:
    """Some rows (n,), int64, of floating-point features (N, D); the engine has room for them."""
    sizes = {2: torch.float16, 4: torch.float32}
    dtype = sizes.get(values.dtype.itemsize, torch.float64)
    taken: np.ndarray = engine.zeros(len(rows), values.shape[1], dtype=dtype).numpy()
    for start, stop in blocks(len(rows)):
        taken[start:stop] = values[rows[start:stop]]
    return taken


def unit_rows(
    features: Tensor,
    name: str = "features",
    *,
    rows: np.ndarray | None = None,
    engine: Local = LOCAL,
) -> Tensor:
    """Rows (N, D) divided by their lengths, which are computed in float64 in one fixed order.

    Parameters
    ----------
    features : Tensor (N, D), float32 or float64, on the CPU
    name, rows, engine
        See :func:`as_features`.

    Returns
    -------
    Tensor (N, D), of the dtype of ``features``

    Raises
    ------
    InputError
        A row is all zeros.
    """
    scaled = engine.zeros(*features.shape, dtype=features.dtype)
    for start, stop in blocks(len(features)):
        exact = features[start:stop].double()
        lengths = fold_sum(exact * exact).sqrt_()
        if not lengths.all():
            zero = start + int((lengths == 0).nonzero()[0, 0])
            zero = zero if rows is None else int(rows[zero])
            raise InputError(
                f"row {zero} of {name} is all zeros and cannot be normalised; leave it out"
            )
        scaled[start:stop] = exact / lengths[:, None]
    return scaled


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
    """Column of the smallest value of each row of ``x`` (n, m); ties go to the lowest."""
    smallest = x.amin(dim=1, keepdim=True)
    columns = torch.arange(x.shape[1], device=x.device)
    return torch.where(x == smallest, columns, x.shape[1]).amin(dim=1)


def check_budget(budget: int, images: int) -> None:
    """Raise InputError unless ``budget`` picks of ``images`` images are possible."""
    if not 1 <= budget <= images:
        raise InputError(f"a budget of {budget} picks from {images} images; choose 1 to {images}")


@dataclass(frozen=True)
class Bound:
    """How far an approximate squared distance, a value, may be from the true one.

    In the units of ``points.fast``, and with d the distance between a and b, a value lies between
    (d - shift)² - e, or 0, and (d + shift)² + e, with e = error · (‖a‖ + ‖b‖)² + underflow.
    """

    shift: float
    error: float
    underflow: float

    def reach(self, length: Tensor, apart: Tensor) -> Tensor:
        """The largest value, float64, of a point no farther from a row than ``apart``, squared.

        With r the length of the row and d the distance, the other point is no longer than r + d.
        """
        distance = apart.sqrt()
        return (
            (distance + self.shift) ** 2
            + self.error * (2 * length + distance) ** 2
            + self.underflow
        )


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
    length : float
        Vectors up to this length are compared with them; centroids, which lie among them, always.
    engine : Local or another engine
        Where the tasks of what is asked about them run.

    Attributes
    ----------
    exact : Tensor (N, D), float32 or float64, on ``device``
    host : Tensor (N, D), the same on the CPU, where sums are taken in order; no copy of what is
        given as float32 or float64 on the CPU, mapped from a file or not
    fast : Tensor (N, D), float32, on ``device``; made when it is first asked for
    norms : Tensor (N,), float32, squared lengths of ``fast``
    bound : Bound
        Of squared distances from float32 products of ``fast``.
    """

    def __init__(
        self,
        features: Any,
        device: str | torch.device = "cpu",
        *,
        length: float = 0.0,
        engine: Local = LOCAL,
    ) -> None:
        host = as_features(features, engine=engine)
        device = engine.device(device)
        exact, n = host.to(device), len(host)
        # The median of some rows, not the mean of all, which a few outliers would carry away.
        centre = host[:: max(1, n // CENTRE_ROWS)].double().median(dim=0).values.to(device)
        longest = max(float((exact[a:b].double() - centre).norm(dim=1).max()) for a, b in blocks(n))
        if length:
            longest = max(longest, length + float(centre.norm()))
        scale = 2.0 ** np.ceil(np.log2(longest)) if longest > 1e-300 else 1.0
        self._set(host, exact, centre, scale, engine)

    def _set(
        self, host: Tensor, exact: Tensor, centre: Tensor, scale: float, engine: Local
    ) -> None:
        self.host, self.exact, self.centre, self.scale = host, exact, centre, scale
        self.engine = engine
        # Whether points near each other are known to be near each other in their order.
        self.together = False
        # Of float32 products of ``fast``: the standard bound for a dot product of D terms (Higham,
        # Accuracy and Stability of Numerical Algorithms, §3.1) and a few roundings more; and what
        # they lose below the smallest normal number.
        terms = self.dim + 16
        self.bound = Bound(shift=0.0, error=terms * UNIT32, underflow=terms * 2.0**-126)
        # Kept here by products.packed, and by handle.
        self.packed: Any = None
        self._handle: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        # For a task elsewhere; arrays, which are handed over without a copy.
        return _again, (self.host.numpy(), self.centre.cpu().numpy(), self.scale)

    @property
    def handle(self) -> Any:
        """What stands for these points among the arguments of tasks."""
        if type(self.engine) is Local:
            return self
        if self._handle is None:
            self._handle = self.engine.put(self)
        return self._handle

    def part(self, start: int, stop: int) -> Points:
        """Some of these points as points of the same space."""
        if (start, stop) == (0, len(self)):
            return self
        some = slice(start, stop)
        return _points(self.host[some], self.exact[some], self.centre, self.scale, self.engine)

    def taken(self, rows: Tensor) -> Points:
        """Some of these, rows (n,), int64, of which near ones are together, in the same space."""
        host = self.host[rows]
        found = _points(host, host.to(self.device), self.centre, self.scale, self.engine)
        found.together = True
        return found

    def ordered(self, order: Tensor) -> Points:
        """These points in another order, (N,), int64, as points of the same space.

        Read from the first to the last, again and again, as they may lie in a file from which
        scattered rows are read far slower.
        """
        n, size = len(self), self.host.element_size() * self.dim
        host = self.engine.zeros(n, self.dim, dtype=self.host.dtype)
        place = torch.empty_like(order)
        place[order] = torch.arange(n)
        # What is written at a time stays in memory.
        step = n if self.engine.memory is None else max(BLOCK_ROWS, self.engine.memory // 4 // size)
        for first, last in blocks(n, step):
            for start, stop in blocks(n):
                to = place[start:stop]
                some = ((to >= first) & (to < last)).nonzero()[:, 0]
                host[to[some]] = self.host[start:stop][some]
        return _points(host, host.to(self.device), self.centre, self.scale, self.engine)

    @property
    def spilled(self) -> bool:
        """Whether they lie in a file."""
        return self.engine.spills(self.host.element_size() * self.host.numel())

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

    @cached_property
    def fast(self) -> Tensor:
        """The float32 copy."""
        if self.device.type == "cpu":
            fast = self.engine.zeros(len(self), self.dim, dtype=torch.float32)
        else:
            fast = torch.empty(len(self), self.dim, dtype=torch.float32, device=self.device)
        for start, stop in blocks(len(self)):
            fast[start:stop] = self.shifted(self.exact[start:stop])
        return fast

    @cached_property
    def norms(self) -> Tensor:
        """Squared lengths of its vectors."""
        norms = torch.empty(len(self), dtype=torch.float32, device=self.device)
        for start, stop in blocks(len(self)):
            norms[start:stop] = self.block(start, stop).square().sum(dim=1)
        return norms

    def block(self, start: int, stop: int) -> Tensor:
        """Rows of ``fast``, which need not be there for that."""
        if "fast" in vars(self):
            return self.fast[start:stop]
        return self.shifted(self.exact[start:stop]).float()

    def shifted(self, rows: Tensor) -> Tensor:
        """Rows (n, D) minus the centre, divided by the scale, in float64."""
        return (rows.double() - self.centre) / self.scale


def _points(host: Tensor, exact: Tensor, centre: Tensor, scale: float, engine: Local) -> Points:
    """Points of which all is known."""
    points = object.__new__(Points)
    points._set(host, exact, centre, scale, engine)
    return points


def _again(host: np.ndarray, centre: np.ndarray, scale: float) -> Points:
    rows, middle = (tensor_of(array) for array in (host, centre))
    return _points(rows, rows, middle, scale, LOCAL)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 that are no less precise, whatever the program has asked torch for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def as_points(features: Any, device: str | torch.device = "cpu") -> Points:
    """Return ``features`` if they are :class:`Points` already, else prepare them."""
    return features if isinstance(features, Points) else Points(features, device)
