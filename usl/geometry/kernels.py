"""Compiled inner loops (numba). Imported only where they are used.

Those that call each other are in one file, since numba compiles anew only what is in a file that
has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as make_intrinsic

from usl.geometry.points import squared_distances

# Columns that are compared at once before any of them is looked at alone; widths of tiles are
# multiples of it.
LANES = 32
# The last of the nearest picks is seldom so many times as far away as it was before.
GUESS = 1.01
# Candidates whose points are fetched before they are needed.
AHEAD = 4

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile when first called, and keep it: beside this file or, if that cannot be, in HOME.

    Nothing is reassociated or fused: float64 results have the bits of their definitions.
    """
    try:
        made: Any = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # there is no place to keep it
        made = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(Function, made)


def intrinsic(build: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is made of LLVM's instructions, for whatever CPU is there."""
    return cast(Callable[..., Any], make_intrinsic(build))


@intrinsic
def _below(typing: Any, entries: Any, limits: Any, limit: Any) -> Any:
    """Which of LANES entries at an address are below one limit, or below their own: a bit each."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        entries, limits, limit = arguments
        vector = ir.VectorType(ir.FloatType(), LANES)
        nothing = ir.Constant(vector, ir.Undefined)

        def load(address: Any) -> Any:
            loaded = builder.load(builder.inttoptr(address, vector.as_pointer()))
            loaded.align = 4
            return loaded

        first = builder.insert_element(nothing, limit, ir.IntType(32)(0))
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        everywhere = builder.shuffle_vector(first, nothing, lanes)
        values = load(entries)
        hits = builder.or_(
            builder.fcmp_ordered("<", values, everywhere),
            builder.fcmp_ordered("<", values, load(limits)),
        )
        return builder.bitcast(hits, ir.IntType(LANES))

    return types.uint32(types.uintp, types.uintp, types.float32), build


@intrinsic
def _lowest_bit(typing: Any, bits: Any) -> Any:
    """Number of the lowest bit that is set, of one at least."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.uint32(types.uint32), build


@intrinsic
def _fetch(typing: Any, address: Any) -> Any:
    """Begin to load what is at an address into the cache."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        name = "llvm.prefetch.p0"
        function: Any = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        where = builder.inttoptr(arguments[0], byte)
        builder.call(function, [where, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), build


@compiled
def collect(
    tile: Any,
    place: int,
    row: int,
    column: int,
    limits: Any,
    both: bool,
    names: Any,
    lists: Any,
    fill: Any,
) -> None:
    """Put the entries of a tile that are below their limits into lists.

    Parameters
    ----------
    tile : ndarray (n, m), float32
        Values of points ``row``, … and points ``column``, …; m is a multiple of ``LANES``.
    place : int
        Where the lists of the rows begin. Those of the columns begin at ``column``.
    row, column : int
    limits : ndarray (L,), float32
        One a list; an entry below it belongs into it. Falls when a list is full.
    both : bool
        Serve the lists of the columns too.
    names : ndarray (N,), int64
        What each point is called in a list.
    lists : ndarray (L, capacity), int64
        Entries as :class:`usl.geometry.neighbors.proposal.Proposal` has them.
    fill : ndarray (L,), int32
        Entries of each.
    """
    n, m = tile.shape
    never = np.full(LANES, -np.inf, dtype=np.float32)
    entries, columns = tile.ctypes.data, never.ctypes.data
    for i in range(n):
        one = place + i
        for start in range(0, m, LANES):
            if both:
                columns = limits.ctypes.data + 4 * (column + start)
            at = entries + 4 * (i * m + start)
            hits = _below(np.uintp(at), np.uintp(columns), limits[one])
            while hits:
                j = start + _lowest_bit(hits)
                hits &= hits - np.uint32(1)
                value, other = tile[i, j], column + j
                if value < limits[one]:
                    _append(one, value, names[other], limits, lists, fill)
                if both and value < limits[other]:
                    _append(other, value, names[row + i], limits, lists, fill)


@compiled
def _append(one: int, value: Any, name: int, limits: Any, lists: Any, fill: Any) -> None:
    at, capacity = fill[one], lists.shape[1]
    lists[one, at] = _entry(value, name)
    fill[one] = at + 1
    if at + 1 == capacity:
        keep = capacity * 3 // 4
        limits[one] = _value(smallest_first(lists[one], capacity, keep))
        fill[one] = keep


@compiled
def _entry(value: Any, name: int) -> int:
    # What rounding made negative is nearer to the truth as 0; bits of others are in their order.
    bits = np.float32(value if value > 0 else 0.0).view(np.int32)
    return int((np.int64(bits) << 32) | np.int64(name))


@compiled
def _value(entry: int) -> Any:
    return np.int32(entry >> 32).view(np.float32)


@compiled
def smallest_first(entries: Any, n: int, k: int) -> int:
    """Move the k smallest of the first n entries to the front; the largest of them.

    Hoare's selection.
    """
    low, high = 0, n - 1
    while low < high:
        pivot = entries[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while entries[i] < pivot:
                i += 1
            while entries[j] > pivot:
                j -= 1
            if i <= j:
                entries[i], entries[j] = entries[j], entries[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    largest = entries[0]
    for i in range(1, k):
        largest = max(largest, entries[i])
    return int(largest)


@compiled
def least_of_groups(tile: Any, least: Any) -> None:
    """Lower the least of each group of columns, (n, groups) float32, by those of a tile (n, m).

    Column j is of group j modulo their number, which divides that of the columns before the tile.
    """
    groups = least.shape[1]
    for i in range(len(tile)):
        row, own = tile[i], least[i]
        for start in range(0, len(row), groups):
            for j in range(min(groups, len(row) - start)):
                own[j] = min(own[j], row[start + j])


@compiled
def rank_limits(least: Any, rank: int, limits: Any) -> None:
    """The value of a rank, from 0, among the least of groups: (n,) float32.

    That many, and one, are no larger among all; where there are far more groups, hardly more are.
    """
    groups = least.shape[1]
    entries = np.empty(groups, np.int64)
    for i in range(len(least)):
        for j in range(groups):
            entries[j] = _entry(least[i, j], j)
        limits[i] = _value(smallest_first(entries, groups, rank + 1))


@compiled
def fold(terms: Any, width: int) -> float:
    """:func:`usl.geometry.points.fold_sum` of the first ``width`` float64 terms."""
    while width > 1:
        half = width // 2
        for i in range(half):
            terms[i] += terms[half + i]
        if width % 2:
            terms[0] += terms[width - 1]
        width = half
    return float(terms[0])


@compiled
def settle(
    points: Any,
    rows: Any,
    lists: Any,
    fill: Any,
    left_out: Any,
    norms: Any,
    shift: float,
    error: float,
    underflow: float,
    unit: float,
    distances: Any,
    indices: Any,
    settled: Any,
) -> None:
    """The nearest of each row among its candidates, by exact distances.

    Only candidates that the error of their values cannot exclude are looked at.

    Parameters
    ----------
    points : ndarray (N, D), float32 or float64
    rows : ndarray (n,), int64
    lists : ndarray (n, capacity), int64
        Candidates, which are reordered.
    fill : ndarray (n,), int32
    left_out : ndarray (n,), float32
        No point that is no candidate has a smaller value.
    norms : ndarray (N,), float32
        Squared lengths, in the units of values.
    shift, error, underflow : float
        See :class:`usl.geometry.points.Bound`.
    unit : float
        Squared distance of one unit of values.
    distances, indices : ndarray (n, k), float64 and int64
        The result, by distance, then by index.
    settled : ndarray (n,), bool
        False where a point that is left out may be nearer.
    """
    dim, k = points.shape[1], distances.shape[1]
    row, terms = np.empty(dim), np.empty(dim)
    found, whose = np.empty(lists.shape[1]), np.empty(lists.shape[1], np.int64)
    below = np.int64(0xFFFFFFFF)
    base, size = points.ctypes.data, dim * points.itemsize
    for r in range(len(rows)):
        settled[r] = False
        n, entries = fill[r], lists[r]
        if n < k:
            continue
        smallest_first(entries, n, k)
        for d in range(dim):
            row[d] = np.float64(points[rows[r], d])
        farthest, count = 0.0, k
        for c in range(k):
            if c + AHEAD < k:
                start = base + (entries[c + AHEAD] & below) * size
                for line in range(0, size, 64):
                    _fetch(np.uintp(start + line))
            whose[c] = entries[c] & below
            found[c] = _distance(row, points, whose[c], terms)
            farthest = max(farthest, found[c])
        # With r the length of the row and d the distance, the other point is no longer than r + d.
        length = np.sqrt(np.float64(norms[rows[r]])) * (1 + 1e-6)
        apart = farthest / unit
        reach = (np.sqrt(apart) + shift) ** 2 + error * (2 * length + np.sqrt(apart)) ** 2
        reach += underflow
        if left_out[r] <= reach:
            continue
        for c in range(k, n):
            if _value(entries[c]) <= reach:
                whose[count] = entries[c] & below
                found[count] = _distance(row, points, whose[count], terms)
                count += found[count] <= farthest
        _sort(found, whose, count)
        for c in range(k):
            distances[r, c], indices[r, c] = found[c], whose[c]
        settled[r] = True


@compiled
def _distance(row: Any, points: Any, other: int, terms: Any) -> Any:
    """:func:`usl.geometry.points.squared_distances` of a row, (D,) float64, to another point.

    The terms are made and folded for the first time in one go.
    """
    dim, half = len(row), len(row) // 2
    if dim == 1:
        return (row[0] - np.float64(points[other, 0])) ** 2
    near, far = points[other, :half], points[other, half : 2 * half]
    for d in range(half):
        a, b = row[d] - np.float64(near[d]), row[half + d] - np.float64(far[d])
        terms[d] = a * a + b * b
    if dim % 2:
        last = row[dim - 1] - np.float64(points[other, dim - 1])
        terms[0] += last * last
    return fold(terms, half)


@compiled
def distances_to_own(rows: Any, targets: Any, own: Any, distances: Any) -> None:
    """Exact squared distance of each row (n, D) to its own target, of (C, D), float64."""
    terms = np.empty(rows.shape[1])
    for r in range(len(rows)):
        distances[r] = _distance(targets[own[r]], rows, r, terms)


@compiled
def _sort(values: Any, who: Any, n: int) -> None:
    """Sort pairs by value, then by whose it is. Shell's sort with Ciura's gaps."""
    for gap in (701, 301, 132, 57, 23, 10, 4, 1):
        for i in range(gap, n):
            value, one = values[i], who[i]
            j = i
            while j >= gap and (
                values[j - gap] > value or (values[j - gap] == value and who[j - gap] > one)
            ):
                values[j], who[j] = values[j - gap], who[j - gap]
                j -= gap
            values[j], who[j] = value, one


@compiled
def nearest(
    tile: Any,
    which: Any,
    keep: bool,
    labels: Any,
    values: Any,
    norms: Any,
    points: Any,
    names: Any,
    centroids: Any,
    shift: float,
    error: float,
    underflow: float,
) -> None:
    """Give each of some points the nearest of some centroids.

    Where a second one is as near as the first within the error of values, exact distances decide;
    of equal ones the first.

    Parameters
    ----------
    tile : ndarray (≥ c, m), float32
        Values of the centroids and the points; m is a multiple of ``LANES``.
    which : ndarray (c,), int64
        The centroids, ascending.
    keep : bool
        The one that a point has competes with them, by its old value; it is none of them.
    labels : ndarray (n,), int64
        The centroid of each point, n ≤ m; overwritten.
    values : ndarray (n,), float32
        What the tile had for it; overwritten.
    norms : ndarray (n,), float32
        Squared lengths of the points, in the units of values.
    points : ndarray (N, D), float32 or float64
    names : ndarray (n,), int64
        Which of them these are.
    centroids : ndarray (C, D), float64
    shift, error, underflow : float
        See :class:`usl.geometry.points.Bound`.
    """
    n, c = len(labels), len(which)
    first, second = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    at, limit = np.empty(LANES, np.int32), np.empty(LANES, np.float32)
    terms = np.empty(points.shape[1])
    for start in range(0, n, LANES):
        lanes = min(LANES, n - start)
        first[:], second[:], at[:] = np.inf, np.inf, -1
        if keep:
            for j in range(lanes):
                first[j] = values[start + j]
        for i in range(c):
            row = tile[i, start : start + LANES]
            for j in range(LANES):
                value, best = row[j], first[j]
                nearer = value < best
                second[j] = min(second[j], best if nearer else value)
                first[j] = value if nearer else best
                at[j] = i if nearer else at[j]
        for j in range(lanes):
            # From error · (2r + d)² ≤ error · (8r² + 2d²), once for the first, once for another.
            slack = 8 * error * np.float64(norms[start + j]) + 2 * underflow
            truly = (max(np.float64(first[j]), 0.0) + slack) / (1 - 2 * error)
            farther = (np.sqrt(truly) + 2 * shift) ** 2
            limit[j] = ((1 + 2 * error) * farther + slack) * (1 + 1e-6)
        for j in range(lanes):
            one = start + j
            if second[j] > limit[j]:
                if at[j] >= 0:
                    labels[one], values[one] = which[at[j]], first[j]
                continue
            closest, best = np.inf, np.int64(-1)
            if keep and values[one] <= limit[j]:
                best = labels[one]
                closest = _distance(centroids[best], points, names[one], terms)
            value = values[one]
            for i in range(c):
                if tile[i, one] <= limit[j]:
                    apart = _distance(centroids[which[i]], points, names[one], terms)
                    if apart < closest or (apart == closest and which[i] < best):
                        closest, best, value = apart, which[i], tile[i, one]
            labels[one], values[one] = best, value


@compiled
def add_members(rows: Any, labels: Any, wanted: Any, sums: Any) -> None:
    """Add each row (n, D) to the sum of its cluster, (C, D), float64, in the order of the rows.

    Of clusters that are wanted, (C,) bool; the sums of others stay.
    """
    for r in range(len(rows)):
        if wanted[labels[r]]:
            own, row = sums[labels[r]], rows[r]
            for d in range(len(row)):
                own[d] += np.float64(row[d])


@compiled
def within_horizon(
    tile: Any,
    norms: Any,
    own: Any,
    rows: Any,
    picks: Any,
    points: Any,
    unit: float,
    error: float,
    ratio: float,
    far: float,
    smallest: float,
    horizon: float,
) -> None:
    """Squared distances of some points to picks, but of far ones, and of the own cluster's, none.

    What rounding could decide, and what is too small for a precise term, is computed exactly.

    Parameters
    ----------
    tile : ndarray (n, P), float64
        ``‖y‖² - 2 x·y`` of points x and picks y; overwritten.
    norms : ndarray (n,), float64
        ``‖x‖²``.
    own : ndarray (n,), int64
        Which pick is the own cluster's, or -1.
    rows, picks : ndarray (n,) and (P,), int64
        Which of the points these are.
    points : ndarray (N, D), float32 or float64
    unit : float
        Squared distance of one unit of the tile.
    error : float
        A squared distance d² errs by at most ``8 · error · unit · ‖x‖² + 2 · error · d²``.
    ratio : float
        It must be so many times as large as the first part.
    far, smallest : float
        Stand for what is left out, and for what is smaller.
    horizon : float
        What is at least so far away is left out.
    """
    terms = np.empty(points.shape[1])
    for r in range(len(rows)):
        row, slack = tile[r], 8 * error * unit * norms[r]
        small, gate = slack * ratio, slack + 4 * error * horizon if horizon < np.inf else -1.0
        doubtful = 0
        for p in range(len(row)):
            apart = (row[p] + norms[r]) * unit
            doubtful += (apart <= small) | (abs(apart - horizon) <= gate)
            row[p] = apart
        if doubtful:
            for p in range(len(row)):
                if row[p] <= small or abs(row[p] - horizon) <= gate:
                    row[p] = _apart(points, rows[r], picks[p], terms)
        for p in range(len(row)):
            row[p] = far if row[p] >= horizon else max(row[p], smallest)
        if own[r] >= 0:
            row[own[r]] = far


@compiled
def nearest_picks(
    tile: Any,
    norms: Any,
    own: Any,
    rows: Any,
    picks: Any,
    points: Any,
    unit: float,
    error: float,
    ratio: float,
    far: float,
    smallest: float,
    count: int,
    exclude: bool,
    last: Any,
) -> None:
    """Squared distances of some points to their nearest picks, in front, in some order.

    Those of 0 are left out; with ``exclude`` instead that of the own cluster's pick, if it is among
    them, equal distances in the order of the picks. Other parameters: :func:`within_horizon`.

    Parameters
    ----------
    count : int
        How many, at most P.
    last : ndarray (n,), float64
        The largest distance among them, before any is left out; what it was for other picks, or
        infinity, is overwritten.
    """
    terms, bits = np.empty(points.shape[1]), np.empty(tile.shape[1], np.int64)
    for r in range(len(rows)):
        row, mine, slack = tile[r], own[r], 8 * error * unit * norms[r]
        small, doubtful = slack * ratio, 0
        for p in range(len(row)):
            row[p] = (row[p] + norms[r]) * unit
            doubtful += row[p] <= small
        if doubtful:
            for p in range(len(row)):
                if row[p] <= small:
                    row[p] = _apart(points, rows[r], picks[p], terms)
        last[r] = _front(row, bits, count, GUESS * last[r])
        among = False
        if exclude and mine >= 0:
            # Whether it is among the nearest must not hang on rounding.
            if abs(row[mine] - last[r]) <= 2 * (slack + 4 * error * last[r]):
                for p in range(len(row)):
                    row[p] = _apart(points, rows[r], picks[p], terms)
                last[r] = _front(row, bits, count, last[r])
            before = 0
            for p in range(len(row)):
                before += (row[p] < row[mine]) | ((row[p] == row[mine]) & (p < mine))
            among = before < count
        left_out = row[mine] if among else 0.0
        for p in range(count):
            value = np.int64(bits[p]).view(np.float64)
            if among and value == left_out:
                row[p], among = far, False
            else:
                row[p] = far if value == 0 and not exclude else max(value, smallest)


@compiled
def _front(values: Any, bits: Any, count: int, guess: float) -> float:
    """Bits of the smallest values, which are not negative, to the front; the largest of them.

    It is quicker where hardly more than these are below the guess.
    """
    given, n = values.view(np.int64), 0
    for p in range(len(values)):
        bits[n] = given[p]
        n += values[p] <= guess
    if n < count:
        n = len(values)
        bits[:] = given
    return float(np.int64(smallest_first(bits, n, count)).view(np.float64))


@compiled
def _apart(points: Any, one: int, other: int, terms: Any) -> Any:
    """:func:`_distance` of two points."""
    return _distance(points[one].astype(np.float64), points, other, terms)


def check() -> None:
    """Compile all, and raise ArithmeticError unless it does on a little what it should."""
    points = np.random.RandomState(0).randn(2 * LANES, 77).astype(np.float32)
    x = torch.from_numpy(points)
    exact = squared_distances(x[:, None], x[None])
    expected = exact.sort(dim=1, stable=True)
    n, k = len(points), 5
    lists, fill = np.zeros((n, n + 1), np.int64), np.zeros(n, np.int32)
    limits, tile = np.empty(n, np.float32), exact.float().numpy()
    least = np.full((n, n), np.inf, np.float32)
    least_of_groups(tile, least)
    rank_limits(least, n // 2, limits)
    collect(tile, 0, 0, 0, limits, False, np.arange(n), lists, fill)
    distances, indices = np.zeros((n, k)), np.zeros((n, k), np.int64)
    settled = np.zeros(n, bool)
    settle(
        points, np.arange(n), lists, fill, limits, x.square().sum(dim=1).numpy(),
        0.0, 1e-6, 0.0, 1.0, distances, indices, settled,
    )  # fmt: skip
    same = np.array_equal(distances, expected.values[:, :k].numpy())
    if not (settled.all() and same and np.array_equal(indices, expected.indices[:, :k].numpy())):
        raise ArithmeticError("it finds other neighbours")
    labels, values, names = np.zeros(n, np.int64), np.zeros(n, np.float32), np.arange(n)
    centroids, norms = points[:3].astype(np.float64), np.ones(n, np.float32)
    given = (names[:3], False, labels, values, norms, points, names, centroids)
    nearest(np.ascontiguousarray(tile[:3]), *given, 0.0, 1e-6, 0.0)
    own, sums = exact[:3].min(dim=0).indices, np.zeros((3, 77))
    apart = np.empty(n)
    distances_to_own(points, centroids, own.numpy(), apart)
    if not np.array_equal(apart, exact[:3].min(dim=0).values.numpy()):
        raise ArithmeticError("it finds other distances")
    add_members(points, labels, np.ones(3, np.bool_), sums)
    in_order = torch.zeros(3, 77).double().index_add_(0, own, x.double())
    if not (np.array_equal(labels, own.numpy()) and np.array_equal(sums, in_order.numpy())):
        raise ArithmeticError("it finds other clusters")
