"""Compiled loops against what they stand for."""

import numpy as np
import pytest
import torch

from usl.geometry import kernels
from usl.geometry.distances import distances_to, distances_to_own
from usl.geometry.neighbors.compiled import _tournament
from usl.geometry.points import fold_sum, squared_distances


def test_sums_have_the_bits_of_fold_sum():
    random = np.random.RandomState(0)
    for width in range(1, 135):
        terms = random.randn(width) * 10.0 ** random.randint(-9, 9, width)
        assert kernels.fold(terms.copy(), width) == float(fold_sum(torch.from_numpy(terms.copy())))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("dim", [1, 2, 3, 7, 64, 100, 129])
def test_distances_have_the_bits_of_squared_distances(kind, dim):
    x = np.random.RandomState(dim).randn(9, dim).astype(kind)
    expected = squared_distances(torch.from_numpy(x[:, None]), torch.from_numpy(x[None]))
    for a in range(9):
        row, terms = x[a].astype(np.float64), np.empty(dim)
        found = [kernels._distance(row, x, b, terms) for b in range(9)]
        assert found == expected[a].tolist()


@pytest.mark.parametrize("loops", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "dim"), [(50, 1), (50, 3), (2500, 1001)])
def test_distances_to_one_point_and_to_each_rows_own(rows, dim, dtype, loops, monkeypatch):
    monkeypatch.setattr("usl.geometry.jit.works", lambda: loops)
    random = torch.Generator().manual_seed(dim)
    x = torch.randn(rows, dim, dtype=dtype, generator=random)
    centroids = torch.randn(4, dim, dtype=torch.float64, generator=random)
    own = torch.randint(4, (rows,), generator=random)
    expected = squared_distances(x, centroids[own])
    assert torch.equal(distances_to_own(x, centroids, own), expected)
    assert torch.equal(distances_to_own(x[::2], centroids, own[::2]), expected[::2])
    assert torch.equal(distances_to(x[1::3], x[0]), squared_distances(x[1::3], x[0]))
    assert len(distances_to(x[:0], x[0])) == 0


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("keep", [False, True])
def test_the_nearest_is_exact_where_values_are_not(kind, keep):
    random = np.random.RandomState(0)
    x = random.randint(4, size=(70, 5)).astype(kind)
    centroids = random.randint(4, size=(12, 5)).astype(np.float64)
    exact = squared_distances(torch.from_numpy(centroids[:, None]), torch.from_numpy(x)).numpy()
    names = random.permutation(70)
    # Wrong by up to what the bound allows, padded with what must not be looked at.
    off = random.uniform(-0.4, 0.4, exact.shape)
    values = (exact + off).astype(np.float32)[:, names]
    which = np.arange(1, 12, 2) if keep else np.arange(12)
    tile = np.zeros((16, 96), np.float32)
    tile[: len(which), :70] = values[which]
    labels, own = np.zeros(70, np.int64), np.zeros(70, np.float32)
    if keep:
        labels[:], own[:] = 4, values[4]
    norms = np.full(70, 40, np.float32)
    given = (tile, which, keep, labels, own, norms, x, names, centroids)
    kernels.nearest(*given, 0.0, 1e-9, 0.4)
    among = np.union1d(which, [4]) if keep else which
    expected = among[exact[among][:, names].argmin(axis=0)]
    assert labels.tolist() == expected.tolist()
    assert own.tolist() == values[expected, np.arange(70)].tolist()


@pytest.mark.parametrize("ties", [3, 1000])
def test_the_smallest_are_moved_to_the_front(ties):
    random = np.random.RandomState(0)
    for n in (1, 2, 5, 40, 41):
        for k in {1, n // 2 or 1, n}:
            entries = random.randint(ties, size=n).astype(np.int64)
            moved = entries.copy()
            largest = kernels.smallest_first(moved, n, k)
            assert sorted(moved[:k]) == sorted(entries)[:k] and largest == max(moved[:k])
            assert sorted(moved) == sorted(entries)


def test_lists_that_overflow_keep_the_smallest():
    random = np.random.RandomState(0)
    tile = random.rand(4, 320).astype(np.float32)
    tile[0, :40] -= 2  # less than nothing, as rounding makes it
    lists, fill = np.zeros((400, 16), np.int64), np.zeros(400, np.int32)
    limits = np.full(400, np.inf, np.float32)
    kernels.collect(tile, 0, 0, 64, limits, False, np.arange(400), lists, fill)
    for row in range(4):
        values = np.maximum(tile[row], 0)
        near = lists[row, : fill[row]] & 0xFFFFFFFF
        assert 12 <= fill[row] < 16 and len(set(near)) == fill[row]
        left = np.delete(values, near - 64)
        assert limits[row] <= left.min() and values[near - 64].max() <= left.min()


def test_both_lists_of_a_pair_get_it():
    tile = np.full((2, 32), 9, np.float32)
    tile[1, 5] = 1
    lists, fill = np.zeros((64, 8), np.int64), np.zeros(64, np.int32)
    limits = np.full(64, 2, np.float32)
    kernels.collect(tile, 0, 0, 32, limits, True, 100 + np.arange(64), lists, fill)
    assert fill[1] == fill[37] == 1 == fill.sum() / 2
    assert lists[1, 0] & 0xFFFFFFFF == 137 and lists[37, 0] & 0xFFFFFFFF == 101


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_every_pair_meets_once_and_nobody_plays_twice_in_a_round(count):
    rounds = list(_tournament(count))
    for pairs in rounds[1:]:
        players = [player for pair in pairs for player in pair]
        assert len(players) == len(set(players))
    pairs = [pair for together in rounds for pair in together]
    assert sorted(pairs) == [(a, b) for a in range(count) for b in range(a, count)]
