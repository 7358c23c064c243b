"""What every backend of neighbours must do, whatever the features."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle

from usl import InputError
from usl.geometry.jit import works
from usl.geometry.neighbors import compiled, exact
from usl.geometry.neighbors.exact import BACKENDS, backend_of, find_neighbors
from usl.geometry.neighbors.proposal import indices_of
from usl.geometry.points import Points, squared_distances


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


MADE = {"shell": shell, "few": few, "vast": vast, "blank": blank}


def made(kind, n, d):
    return MADE[kind](n, d) if kind in MADE else features(kind, n, d)


@pytest.mark.parametrize("name", BACKENDS)
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
    ],
)
def test_neighbours_are_those_of_the_oracle(monkeypatch, name, kind):
    x = made(kind, 190, 5)
    distances, indices = oracle.neighbors(x, 12)
    for block in (32, 2048):
        monkeypatch.setattr(compiled, "BLOCK", block)
        # The lists of some blocks, or of all, at once.
        for memory in (1 << 10, 1 << 26):
            found = find_neighbors(x, 12, backend=name, memory=memory)
            assert np.array_equal(found.indices.numpy(), indices)
            assert np.array_equal(found.distances.numpy(), distances.astype(np.float32))
            np.testing.assert_allclose(found.mean_distances, distances.mean(1), rtol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("kind", ["sphere", "far", "outlier", "tiny", "shell", "vast"])
@pytest.mark.parametrize("memory", [1 << 12, 1 << 30])
def test_proposals_are_within_their_error_and_leave_out_nothing_nearer(
    monkeypatch, name, kind, memory
):
    monkeypatch.setattr(compiled, "BLOCK", 64)
    monkeypatch.setattr(compiled, "SAMPLE", 128)
    points = Points(made(kind, 200, 16))
    lengths = points.norms.double().sqrt()
    true = squared_distances(points.fast[:, None], points.fast[None])
    seen = []
    for proposal in BACKENDS[name](points, 20, memory):
        bound = proposal.bound
        slack = bound.error * (lengths[:, None] + lengths) ** 2 + bound.underflow
        least = (true.sqrt() - bound.shift).clamp_min(0).square() - slack
        most = (true.sqrt() + bound.shift).square() + slack
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
    assert backend_of("auto", Points(np.zeros((exact.FEW, 1)))) == "compiled"
    assert backend_of("auto", Points(np.zeros((exact.FEW - 1, 1)))) == "torch"
    with pytest.raises(InputError, match="unknown `backend` 'abacus'; choose one of auto, torch"):
        backend_of("abacus")


@pytest.mark.parametrize("missing", [True, False])
def test_without_a_compiler_that_works_torch_does_it(monkeypatch, caplog, missing):
    many = Points(np.zeros((exact.FEW, 1)))
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
from usl.geometry.neighbors.exact import find_neighbors

found = find_neighbors(np.load(sys.argv[1]), 20, backend="compiled")
np.savez(sys.argv[2], found.distances, found.indices, found.mean_distances)
"""


@pytest.mark.slow
def test_a_plain_cpu_gives_the_same_bits(tmp_path):
    x = features("sphere", 3000, 40)
    np.save(tmp_path / "x.npy", x)
    # Compiled anew without the vector instructions of this machine.
    plain = {
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    words = [sys.executable, "-c", PLAIN, str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    subprocess.run(words, env=os.environ | plain, check=True)
    expected = find_neighbors(x, 20, backend="torch")
    with np.load(tmp_path / "found.npz") as found:
        for theirs, key in zip(
            found.values(), ("distances", "indices", "mean_distances"), strict=True
        ):
            assert np.array_equal(theirs, getattr(expected, key).numpy()), key
