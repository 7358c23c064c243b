"""Products of int16 vectors, exact in int32, by the instructions that CPUs have for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from usl.geometry.kernels import LANES, compiled, intrinsic

# No vector is longer than 1; of that so many steps make the largest whole number. Half a squared
# distance is then at most 2 · 32000², which int32 holds.
STEPS = 32000

FEATURES = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
WIDE = "+avx512vnni" in FEATURES and "+avx512bw" in FEATURES
# Two products and their sum in one instruction: twice as fast as float32. With AVX2 alone it is no
# faster, but right.
FAST = WIDE or "+avxvnni" in FEATURES
# Whole numbers of a register; registers of a row of what is kept in them; rows. Both divide LANES.
WIDTH, ACROSS, DOWN = (16, 2, 8) if WIDE else (8, 2, 4)


@intrinsic
def _block(
    typing: Any,
    rows: Any,
    columns: Any,
    pairs: Any,
    row_halves: Any,
    column_halves: Any,
    factor: Any,
    out: Any,
    stride: Any,
) -> Any:
    """See :func:`multiply`: DOWN rows by ACROSS · WIDTH columns, kept in registers."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, columns, pairs, row_halves, column_halves, factor, out, stride = arguments
        i32, i64 = ir.IntType(32), ir.IntType(64)
        whole, real = ir.VectorType(i32, WIDTH), ir.VectorType(ir.FloatType(), WIDTH)
        short = ir.VectorType(ir.IntType(16), 2 * WIDTH)
        name = "llvm.x86.avx512.pmaddw.d.512" if WIDE else "llvm.x86.avx2.pmadd.wd"
        kind = ir.FunctionType(whole, [short, short])
        pair_sums: Any = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]

        def pointer(base: Any, offset: Any, kind: Any) -> Any:
            return builder.inttoptr(builder.add(base, offset), kind.as_pointer())

        def load(base: Any, number: int, kind: Any) -> Any:
            loaded = builder.load(pointer(base, i64(4 * number), kind))
            loaded.align = 4
            return loaded

        def everywhere(value: Any, kind: Any) -> Any:
            nothing = ir.Constant(kind, ir.Undefined)
            lanes = ir.Constant(ir.VectorType(i32, WIDTH), [0] * WIDTH)
            return builder.shuffle_vector(
                builder.insert_element(nothing, value, i32(0)), nothing, lanes
            )

        def counter(first: Any) -> Any:
            phi = builder.phi(first.type)
            phi.add_incoming(first, before)
            return phi

        cells = [(r, c) for r in range(DOWN) for c in range(ACROSS)]
        first = [
            builder.add(
                everywhere(load(row_halves, r, i32), whole),
                load(column_halves, WIDTH * c, whole),
            )
            for r, c in cells
        ]
        before = builder.block
        loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        count, at_rows, at_columns = counter(i64(0)), counter(rows), counter(columns)
        sums = [counter(one) for one in first]
        there = [builder.bitcast(load(at_columns, WIDTH * c, whole), short) for c in range(ACROSS)]
        here = [
            builder.bitcast(everywhere(load(at_rows, r, i32), whole), short) for r in range(DOWN)
        ]
        # LLVM makes one instruction of the product and the sum where there is one.
        added = [
            builder.add(one, builder.call(pair_sums, [here[r], there[c]]))
            for one, (r, c) in zip(sums, cells, strict=True)
        ]
        further = builder.add(count, i64(1))
        steps = [builder.add(at, i64(4 * LANES)) for at in (at_rows, at_columns)]
        old, new = [count, at_rows, at_columns, *sums], [further, *steps, *added]
        for phi, value in zip(old, new, strict=True):
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", further, pairs), loop, done)
        builder.position_at_end(done)
        times = everywhere(factor, real)
        for one, (r, c) in zip(added, cells, strict=True):
            offset = builder.add(builder.mul(stride, i64(r)), i64(4 * WIDTH * c))
            value = builder.fmul(builder.sitofp(one, real), times)
            builder.store(value, pointer(out, offset, real)).align = 4
        return context.get_dummy_value()

    address = types.uintp
    number = types.intp
    given = (address, address, number, address, address, types.float32, address, number)
    return types.void(*given), build


@compiled
def multiply(
    rows: Any,
    row_halves: Any,
    start: int,
    columns: Any,
    column_halves: Any,
    first: int,
    factor: float,
    tile: Any,
) -> None:
    """Approximate squared distances of some vectors to some others.

    Parameters
    ----------
    rows, columns : ndarray (P, G, LANES, 2), int16
        Vectors, from :func:`quantize`.
    row_halves, column_halves : ndarray (P · LANES,), int32
        Minus half their squared lengths.
    start, first : int
        The first of each; multiples of ``LANES``.
    factor : float
        Of half a negative squared distance.
    tile : ndarray (n, m), float32
        The result; n and m are multiples of ``LANES``.
    """
    n, m = tile.shape
    pairs = rows.shape[1]
    panel, stride = pairs * LANES, 4 * m
    a, b, out = rows.ctypes.data, columns.ctypes.data, tile.ctypes.data
    for i in range(0, n, DOWN):
        one = start + i
        row = a + 4 * (one // LANES * panel + one % LANES)
        for j in range(0, m, ACROSS * WIDTH):
            other = first + j
            _block(
                np.uintp(row),
                np.uintp(b + 4 * (other // LANES * panel + other % LANES)),
                pairs,
                np.uintp(row_halves.ctypes.data + 4 * one),
                np.uintp(column_halves.ctypes.data + 4 * other),
                np.float32(factor),
                np.uintp(out + i * stride + 4 * j),
                stride,
            )


@compiled
def quantize(
    vectors: Any, which: Any, centre: Any, factor: float, panels: Any, halves: Any
) -> float:
    """Vectors as whole numbers of steps, LANES side by side; the largest squared error of one.

    That is infinite where one is longer than STEPS, but for rounding.

    Parameters
    ----------
    vectors : ndarray (N, D), float32 or float64
    which : ndarray (n,), int64
        Whose turn it is.
    centre : ndarray (D,), float64
        Is subtracted first.
    factor : float
        Steps of a unit of the vectors.
    panels : ndarray (P, G, LANES, 2), int16
        The result, with 2 G ≥ D; what is beyond n or D is left as it is.
    halves : ndarray (P · LANES,), int32
        Minus half the squared length of each, rounded towards zero.
    """
    worst = 0.0
    dim = vectors.shape[1]
    for i in range(len(which)):
        panel, lane, row = panels[i // LANES], i % LANES, vectors[which[i]]
        error, wide, length = 0.0, 0.0, np.int64(0)
        for d in range(dim):
            wanted = (np.float64(row[d]) - centre[d]) * factor
            wide += wanted * wanted
            found = np.rint(wanted)
            error += (wanted - found) ** 2
            step = np.int16(found)
            length += np.int64(step) * np.int64(step)
            panel[d >> 1, lane, d & 1] = step
        halves[i] = -(length >> 1)
        worst = max(worst, error if wide < (1.001 * STEPS) ** 2 else np.inf)
    return worst


def check() -> None:
    """Compile all, and raise ArithmeticError unless it does on a little what it should."""
    random = np.random.RandomState(0)
    x = random.randint(-200, 200, (2 * LANES, 77)).astype(np.float32)
    panels, halves = np.zeros((2, 39, LANES, 2), np.int16), np.zeros(2 * LANES, np.int32)
    tile = np.empty((LANES, 2 * LANES), np.float32)
    quantize(x, np.arange(len(x)), np.zeros(77), 1.0, panels, halves)
    multiply(panels, halves, LANES, panels, halves, 0, -1.0, tile)
    lengths = (x * x).sum(axis=1) // 2
    if not np.array_equal(tile, lengths[LANES:, None] + lengths - x[LANES:] @ x.T):
        raise ArithmeticError("its products are others")
