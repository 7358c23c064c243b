"""What every backend of neighbours must do, whatever the features."""

import logging
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle

from usl import InputError, Regularizer, select
from usl.geometry import int16, products
from usl.geometry.jit import works
from usl.geometry.kmeans import kmeans
from usl.geometry.memory import free_memory
from usl.geometry.neighbors import compiled, keops, search
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.neighbors.proposal import indices_of
from usl.geometry.neighbors.search import BACKENDS, backend_of
from usl.geometry.points import Points, squared_distances
from usl.geometry.products import Float32, Int16


def shell(n, d):
    """Points around one far from the origin, whose distances differ by less than float32 tells."""
    random = np.random.RandomState(0)
    out = random.randn(n, d)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return 1 + 1e-3 * out * (1 + 1e-9 * random.permutation(n))[:, None]


def few(n, d):
    """Nine vectors, again and again, with equal distances between different ones."""
    return np.random.RandomState(0).randint(0, 3, (n, 2)).repeat(d, axis=1).astype(np.float32)


def vast(n, d):
    """One point so far away that float32 cannot tell the others apart, even from nothing."""
    out = np.random.RandomState(0).randn(n, d) * 1e-21
    out[-1] = 1
    return out


def blank(n, d):
    """Most of them the same, as empty images are."""
    out = features("sphere", n, d)
    out[: 4 * n // 5] = 0
    return out


def halfway(n, d):
    """Points on a line, each half a step of int16 off in every coordinate, to one side or other."""
    steps = 2 * np.random.RandomState(0).permutation(np.arange(100, 100 + n))
    # Halves are rounded to even numbers: up from odd ones.
    line = (steps + np.arange(n) % 2 + 0.5) / 32000
    out = np.outer(line, np.ones(d))
    out[: n // 2 + 2] = 0  # makes the centre 0,
    out[0] = 0.99 / d**0.5  # and the unit 1
    return out


MADE = {"shell": shell, "few": few, "vast": vast, "blank": blank, "halfway": halfway}


def made(kind, n, d):
    return MADE[kind](n, d) if kind in MADE else features(kind, n, d)


def have(backend):
    try:
        backend_of(backend, Points(np.zeros((2, 2))))
    except InputError as error:
        return str(error)
    return ""


def way(name, product=None):
    missing = have(name)
    if product is Int16 and "+avx2" not in int16.FEATURES:
        missing = "no products of int16 on this CPU"
    skipped = pytest.mark.skipif(bool(missing), reason=missing)
    id = name if product is None else f"{name}-{product.name}"
    return pytest.param((name, product), id=id, marks=skipped)


WAYS = [
    way("torch"),
    way("compiled", Float32),
    way("compiled", Int16),
    way("keops"),
    way("faiss"),
]


@pytest.fixture(params=WAYS)
def backend(request, monkeypatch):
    """A backend whose neighbours are exact."""
    name, product = request.param
    if product is not None:
        monkeypatch.setattr(products, "products_of", product)
    return name


def test_every_backend_is_here_or_approximate():
    assert {p.values[0][0] for p in WAYS} == BACKENDS.keys()


@pytest.mark.parametrize(
    "kind",
    [
        "sphere",
        "grid",
        "duplicates",
        "constant",
        "far",
        "outlier",
        "tiny",
        "shell",
        "few",
        "vast",
        "blank",
        "halfway",
    ],
)
def test_neighbours_are_those_of_the_oracle(monkeypatch, backend, kind):
    x = made(kind, 190, 5)
    distances, indices = oracle.neighbors(x, 12)
    for block in (32, 2048):
        monkeypatch.setattr(compiled, "BLOCK", block)
        # The lists of some blocks, or of all, at once.
        for memory in (1 << 10, 1 << 26):
            found = find_neighbors(x, 12, backend=backend, memory=memory)
            assert np.array_equal(found.indices.numpy(), indices)
            assert np.array_equal(found.distances.numpy(), distances.astype(np.float32))
            np.testing.assert_allclose(found.mean_distances, distances.mean(1), rtol=1e-12)
            assert found.recall == 1.0


@pytest.mark.parametrize("kind", ["sphere", "far", "outlier", "tiny", "shell", "vast", "halfway"])
@pytest.mark.parametrize("memory", [1 << 12, 1 << 30])
def test_proposals_are_within_their_error_and_leave_out_nothing_nearer(
    monkeypatch, backend, kind, memory
):
    monkeypatch.setattr(compiled, "BLOCK", 64)
    monkeypatch.setattr(compiled, "SAMPLE", 128)
    points = Points(made(kind, 200, 16))
    lengths = points.norms.double().sqrt()
    true = squared_distances(points.shifted(points.exact)[:, None], points.shifted(points.exact))
    seen = []
    for proposal in BACKENDS[backend](points, 20, memory, 0, len(points)):
        least, most = limits(proposal.bound, true, lengths)
        values = (proposal.candidates >> 32).int().view(torch.float32).double()
        for n, row in enumerate(proposal.rows.tolist()):
            fill = int(proposal.fill[n])
            near = indices_of(proposal.candidates[n, :fill])
            assert len(set(near.tolist())) == fill
            assert (values[n, :fill] >= least[row, near]).all()
            assert (values[n, :fill] <= most[row, near]).all()
            left = torch.ones(200, dtype=torch.bool)
            left[near] = False
            assert (most[row][left] >= proposal.left_out[n]).all()
            seen.append(row)
    assert sorted(seen) == list(range(200))


def limits(bound, true, lengths):
    """Between what values may lie."""
    slack = bound.error * (lengths[:, None] + lengths) ** 2 + bound.underflow
    least = (true.sqrt() - bound.shift).clamp_min(0).square() - slack
    return least, (true.sqrt() + bound.shift).square() + slack


@pytest.mark.skipif("+avx2" not in int16.FEATURES, reason="no products of int16 on this CPU")
@pytest.mark.parametrize("dim", [1, 16, 77])
def test_halves_of_steps_use_up_the_bound_of_int16(dim):
    points = Points(halfway(200, dim))
    assert points.scale == 1 and not points.centre.any()
    made_of = Int16(points)
    all_of_them = made_of.pack(points.host, torch.arange(200))
    tile = torch.empty(224, 224)
    values = torch.from_numpy(made_of.values(all_of_them, 0, all_of_them, 0, tile))[:200, :200]
    true = squared_distances(points.exact[:, None], points.exact)
    bound = made_of.bound(all_of_them, all_of_them)
    values = values.double().clamp_min(0)
    least, most = limits(bound, true, points.norms.double().sqrt())
    assert (values >= least).all() and (values <= most).all()
    assert (values.sqrt() - true.sqrt()).abs().max() > 0.99 * bound.shift


def test_the_products_of_a_dot_product_use_up_much_of_the_bound_of_float32():
    # Terms of one sign whose roundings add up: the partial sums stay just above powers of two.
    worst = 0.0
    for seed in range(20):
        random = np.random.RandomState(seed)
        points = Points(random.uniform(0.9, 1.0, (64, 300)) * random.choice([-1, 1], (64, 1)))
        made_of = Float32(points)
        rows = made_of.pack(points.host, torch.arange(64))
        values = torch.from_numpy(made_of.values(rows, 0, rows, 0, torch.empty(64, 64)))
        true = squared_distances(
            points.shifted(points.exact)[:, None], points.shifted(points.exact)
        )
        lengths = points.norms.double().sqrt()
        _, most = limits(points.bound, true, lengths)
        worst = max(worst, float(((values - true).abs() / (most - true)).max()))
    assert 1e-3 < worst <= 1


@pytest.mark.slow
def test_the_same_bits_for_every_number_of_threads_and_backend():
    x = features("sphere", 6000, 40)
    expected = find_neighbors(x, 30, backend="torch")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = find_neighbors(x, 30, backend="compiled")
            assert torch.get_num_threads() == threads
            for key in ("distances", "indices", "mean_distances"):
                assert torch.equal(getattr(found, key), getattr(expected, key)), (threads, key)
    finally:
        torch.set_num_threads(before)


def test_names():
    assert backend_of("auto") == "torch"
    assert backend_of("auto", Points(np.zeros((search.FEW, 1)))) == "compiled"
    assert backend_of("auto", Points(np.zeros((search.FEW - 1, 1)))) == "torch"
    with pytest.raises(InputError, match="unknown `backend` 'abacus'; choose one of auto, torch"):
        backend_of("abacus")


def test_a_backend_that_is_not_there_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"is not installed: pip install faiss-cpu"):
        backend_of("faiss")
    keops.check.cache_clear()
    wrong = torch.zeros(20, 5), torch.zeros(20, 5, dtype=torch.int64)
    monkeypatch.setattr(keops, "_smallest", lambda x, y, k: wrong)
    with pytest.raises(InputError, match="keops does not run here .it finds other neighbours.; c"):
        backend_of("keops", Points(np.zeros((2, 2))))
    monkeypatch.setattr(keops, "MOST", 1)
    with pytest.raises(InputError, match="keops counts in float32, up to 1 images; choose auto"):
        next(iter(keops.propose(Points(np.zeros((2, 2))), 1, 0, 0, 2)))
    monkeypatch.setitem(sys.modules, "pykeops", None)
    with pytest.raises(InputError, match="keops does not run here .*pykeops"):
        backend_of("keops", Points(np.zeros((2, 2))))
    keops.check.cache_clear()


def test_too_little_memory_is_said_before_the_search(monkeypatch):
    x = np.random.RandomState(0).rand(100, 3)
    assert (free_memory() or 1) > 0
    monkeypatch.setattr("usl.geometry.memory.free_memory", lambda: 10_000)
    assert len(find_neighbors(x, 5, backend="torch").indices) == 100
    message = "the 10 neighbours of 100 images would take 0.0 GB, and 0.0 GB are free; choose fewer"
    with pytest.raises(InputError, match=message):
        find_neighbors(x, 10)
    with pytest.raises(InputError, match="lists for the 5 neighbours of 128 images would take"):
        find_neighbors(x, 5, backend="compiled")


@pytest.mark.parametrize("missing", [True, False])
def test_without_a_compiler_that_works_torch_does_it(monkeypatch, caplog, missing):
    many = Points(np.zeros((search.FEW, 1)))
    works.cache_clear()
    with caplog.at_level(logging.INFO, "usl"):
        logging.getLogger("usl").propagate = True
        if missing:
            monkeypatch.delattr("usl.geometry.kernels", raising=False)
            monkeypatch.setitem(sys.modules, "usl.geometry.kernels", None)
        else:
            monkeypatch.setattr("usl.geometry.kernels.rank_limits", lambda *args: None)
        assert [backend_of("auto", many) for _ in range(2)] == ["torch", "torch"]
        with pytest.raises(InputError, match="`backend` compiled does not run here, as the log"):
            backend_of("compiled", many)
    works.cache_clear()
    said = [r.getMessage() for r in caplog.records if "do not run here" in r.getMessage()]
    assert len(said) == 1


PLAIN = """
import sys
import numpy as np
from usl import Regularizer, select
from usl.geometry import int16, products
from usl.geometry.kmeans import kmeans
from usl.geometry.neighbors.exact import find_neighbors

HORIZONS = ("dist", "num")
if sys.argv[3] == "int16":
    assert not int16.FAST
    int16.check()
    products.products_of = products.Int16
elif sys.argv[3] == "float32":
    assert not int16.FAST
x = np.load(sys.argv[1])
found = find_neighbors(x, 20, backend="compiled")
clusters = kmeans(x, 50, seed=1)
picks = [select(x, 50, seed=1, k=20, regularizer=Regularizer(horizon=h)).picks for h in HORIZONS]
np.savez(
    sys.argv[2], found.distances, found.indices, found.mean_distances, clusters.labels,
    clusters.centroids, *picks,
)
"""
FEATURES = {
    "x86-64": "",
    "haswell": "+avx2,+fma",
    "skylake-avx512": "+avx2,+fma,+avx512f,+avx512bw,+avx512dq,+avx512vl",
}
X86 = platform.machine() in ("x86_64", "AMD64")


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="names of this kind of CPU")
@pytest.mark.parametrize(
    ("cpu", "product"),
    [
        ("x86-64", "float32"),
        ("haswell", "int16"),
        ("haswell", "float32"),
        ("skylake-avx512", "int16"),
    ],
)
def test_another_cpu_gives_the_same_bits(tmp_path, cpu, product):
    x = features("sphere", 3000, 40)
    np.save(tmp_path / "x.npy", x)
    # Compiled anew without some vector instructions of this machine.
    other = {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": FEATURES[cpu],
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    words = [sys.executable, "-c", PLAIN, str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    subprocess.run([*words, product], env=os.environ | other, check=True)
    neighbours, clusters = find_neighbors(x, 20, backend="torch"), kmeans(x, 50, seed=1)
    expected = [neighbours.distances, neighbours.indices, neighbours.mean_distances]
    expected += [clusters.labels, clusters.centroids]
    for horizon in ("dist", "num"):
        reg = Regularizer(horizon=horizon)
        expected.append(select(x, 50, seed=1, k=20, regularizer=reg, backend="torch").picks)
    with np.load(tmp_path / "found.npz") as found:
        for theirs, ours in zip(found.values(), expected, strict=True):
            assert np.array_equal(theirs, ours.numpy())
