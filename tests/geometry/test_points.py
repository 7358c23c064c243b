"""Points and their distances."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError, Regularizer
from usl.geometry import points as points_module
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import (
    Oddities,
    Points,
    as_features,
    first_copies,
    fold_sum,
    not_finite,
    oddities,
    squared_distances,
)
from usl.selectors.usl import pick


def test_fold_sum_and_distances():
    for n in (1, 2, 3, 7, 64, 100):
        x = torch.randn(5, n, dtype=torch.float64)
        torch.testing.assert_close(fold_sum(x.clone()), x.sum(1), rtol=1e-13, atol=1e-13)
    a = torch.tensor([[1.0, 2.0]])
    assert squared_distances(a, torch.tensor([[4.0, 6.0]])).tolist() == [25.0]


def test_points_are_prepared_once():
    points = Points(features("sphere", 50, 3))
    assert points_module.as_points(points) is points
    assert 0.5 < points.norms.max().sqrt() <= 1.0


def test_a_program_that_wants_less_precise_products_gets_exact_neighbours(monkeypatch):
    x = features("sphere", 300, 8)
    before, seen = torch.get_float32_matmul_precision(), []
    multiply = torch.addmm

    def watching(*given, **options):
        seen.append(torch.get_float32_matmul_precision())
        return multiply(*given, **options)

    monkeypatch.setattr(torch, "addmm", watching)
    monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    try:
        torch.set_float32_matmul_precision("medium")
        find_neighbors(x, 5, backend="torch")
        kmeans(x, 5, seed=0)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(seen) > 2 and set(seen) == {"highest"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_features_in_a_file_are_not_copied(tmp_path, dtype):
    np.save(tmp_path / "x.npy", features("sphere", 5000, 8).astype(dtype))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    points = Points(mapped)
    assert points.host.data_ptr() == points.exact.data_ptr() == mapped.ctypes.data
    density = find_neighbors(points, 9, backend="compiled").density
    labels = kmeans(points, 20, seed=0, nonempty=20).labels
    for horizon in ("dist", "num"):
        pick(points, density, labels, 20, Regularizer(rounds=3, horizon=horizon))
    # What was needed of them in another precision is there once, and no float32 copy.
    assert points.packed is not None and "fast" not in vars(points)
    assert torch.equal(points.block(30, 40), points.fast[30:40])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "constant"])
def test_first_copies_equal_the_slow_form(kind, dtype):
    x = features(kind, 300, 3).astype(dtype)
    seen = {}
    expected = [seen.setdefault(tuple(row), i) for i, row in enumerate(x.tolist())]
    assert first_copies(torch.from_numpy(x)).tolist() == expected


def test_both_zeros_are_one_value_and_rows_of_one_hash_are_told_apart(monkeypatch):
    x = torch.tensor([[0.0, 1.0], [-0.0, 1.0], [0.0, 2.0]])
    assert first_copies(x).tolist() == [0, 0, 2]

    class Zeros:
        def __init__(self, seed):
            pass

        def randint(self, low, high, size):
            return np.zeros(size, dtype=np.int64)

    # Factors of one bit only: many rows have one hash.
    monkeypatch.setattr(np.random, "RandomState", Zeros)
    y = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 1.0], [1.0, 1.0]])
    assert first_copies(y).tolist() == [0, 1, 0, 1, 4]


def test_oddities_are_counted_and_said():
    x = torch.randn(40, 5)
    x[:, 2] = 7.0
    x[[3, 30]] = x[9].clone()
    assert oddities(x) == Oddities(zeros=0, copies=2, constants=1)
    y = torch.cat([x[:, :2], torch.zeros(40, 0)], dim=1)
    y[[5, 6, 7]] = 0.0
    found = oddities(y)
    assert (found.zeros, found.copies, found.constants) == (3, 2 + 2, 0)
    assert found.remarks() == [
        "3 rows are all zeros", "4 rows are exact copies of earlier rows",
    ]  # fmt: skip
    assert oddities(torch.randn(9, 3)).remarks() == []
    assert oddities(torch.randn(1, 3)).remarks() == []


def test_all_rows_that_are_not_finite_are_counted_and_the_first_are_listed():
    x = torch.randn(40, 3)
    x[::2, 1] = torch.nan
    x[5, 0] = torch.inf
    assert not_finite(x).tolist() == sorted([*range(0, 40, 2), 5])
    message = r"in 21 of 40 rows \(0, 2, 4, 5, 6, 8, 10, 12, 14, 16, …\); mend or leave out"
    with pytest.raises(InputError, match=message):
        as_features(x)
