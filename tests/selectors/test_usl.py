"""Picks against a slow float64 oracle, and what must not change them."""

import math

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle
from oracles.forms import FORMS

from usl import InputError, Regularizer, select
from usl.geometry import assignment
from usl.geometry import distances as distances_module
from usl.geometry.neighbors import search as neighbors_module
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.neighbors.search import BACKENDS, backend_of
from usl.geometry.points import Points, same_bits
from usl.selectors import regularizer as regularizer_module
from usl.selectors.random import random_picks
from usl.selectors.regularizer import Penalties
from usl.selectors.usl import pick


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", ["sphere", "grid", "duplicates", "constant", "far", "outlier", "tiny"]
)
def test_picks_equal_the_oracle(kind, form):
    slow, fast = FORMS[form]
    for d, budget, seed in [(1, 5, 1), (2, 1, 1), (5, 40, 2), (33, 13, 3), (64, 90, 4)]:
        x = features(kind, 90, d, seed)
        options = {"weight": 0.7, "alpha": 0.5 if d % 2 else 1.0, "momentum": 0.6, "rounds": 4}
        picks, labels, density = oracle.usl(x, budget, seed=seed, k=9, **options, **slow)
        found = select(
            x, budget, seed=seed, k=9, iterations=50, regularizer=Regularizer(**options, **fast)
        )
        assert found.clusters.tolist() == labels.tolist()
        assert found.picks.tolist() == picks.tolist()
        np.testing.assert_allclose(found.density.numpy(), density, rtol=1e-12)


@pytest.mark.slow
def test_published_settings_equal_the_oracle():
    # λ, α, m, horizon, T of the published experiments, at a size that the oracle can bear.
    x = features("sphere", 300, 16, seed=5)
    settings = [
        ({"weight": 0.5, "alpha": 0.5, "momentum": 0.9, "rounds": 10}, {}, {}),
        (
            {"weight": 1.0, "alpha": 1.0, "momentum": 0.9, "rounds": 10},
            {"horizon": 1.0},
            {"horizon_dist": 1.0},
        ),
        (
            {"weight": 1.5, "alpha": 0.5, "momentum": 0.0, "rounds": 2},
            {"form": "num", "horizon": 128},
            {"horizon": "num"},
        ),
        (
            {"weight": 0.05, "alpha": 1.0, "momentum": 0.0, "rounds": 2},
            {"form": "num", "horizon": 32, "exclude_own": True},
            {"horizon": "num", "horizon_num": 32, "exclude_same_cluster": True},
        ),
    ]
    for options, slow, fast in settings:
        for seed in (1, 2):
            picks, _, _ = oracle.usl(x, 45, seed=seed, k=20, iterations=100, **options, **slow)
            found = select(x, 45, seed=seed, k=20, regularizer=Regularizer(**options, **fast))
            assert found.picks.tolist() == picks.tolist()


@pytest.mark.parametrize("labelled", [(), (3, 77, 150)])
def test_only_picks_that_changed_are_evaluated_again(monkeypatch, labelled):
    whole, evaluated = Penalties._sums, []

    def counting(self, rows, own, *sets):
        evaluated.append(len(sets[0]))
        return whole(self, rows, own, *sets)

    monkeypatch.setattr(Penalties, "_sums", counting)
    x = features("sphere", 200, 16, seed=5)
    reg = Regularizer(rounds=10)
    found = select(x, 30, seed=1, k=20, regularizer=reg, labelled=labelled)
    if not labelled:
        expected = oracle.usl(x, 30, seed=1, k=20, weight=0.5, alpha=0.5, momentum=0.9, rounds=10)[
            0
        ]
        assert found.picks.tolist() == expected.tolist()
    assert evaluated[0] == 30 + len(labelled) and min(evaluated) < 10
    # As where every round evaluates all picks.
    monkeypatch.setattr(regularizer_module, "PARTIAL", -1.0)
    evaluated.clear()
    full = select(x, 30, seed=1, k=20, regularizer=reg, labelled=labelled)
    assert set(evaluated) == {30 + len(labelled)}
    assert torch.equal(full.picks, found.picks)
    assert torch.allclose(full.scores, found.scores, rtol=1e-9)


@pytest.mark.parametrize("exclude", [False, True])
def test_only_images_near_a_pick_that_changed_are_evaluated_again(monkeypatch, exclude):
    whole, evaluated = Penalties._sums, []

    def counting(self, rows, own, *sets):
        evaluated.append(len(rows))
        return whole(self, rows, own, *sets)

    monkeypatch.setattr(Penalties, "_sums", counting)
    x = features("sphere", 1500, 3, seed=5)
    reg = Regularizer(
        rounds=10, horizon="num", horizon_num=3, exclude_same_cluster=exclude, weight=5.0
    )
    found = select(x, 60, seed=1, k=20, regularizer=reg)
    assert evaluated[0] == 1500 and 0 < min(evaluated) < 500
    monkeypatch.setattr(regularizer_module, "PARTIAL", -1.0)
    full = select(x, 60, seed=1, k=20, regularizer=reg)
    assert torch.equal(full.picks, found.picks)
    assert torch.allclose(full.scores, found.scores, rtol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_compiled_terms_are_those_of_torch(form, monkeypatch):
    x = features("duplicates", 400, 6)
    reg = Regularizer(rounds=5, **FORMS[form][1])
    found = select(x, 40, seed=1, k=20, regularizer=reg)
    monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    expected = select(x, 40, seed=1, k=20, regularizer=reg)
    assert torch.equal(found.picks, expected.picks)
    assert torch.allclose(found.scores, expected.scores, rtol=1e-8)


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "far", "outlier"])
def test_picks_are_those_of_the_oracle_for_every_backend_and_number_of_threads(kind):
    x = features(kind, 210, 5)
    options = {"weight": 0.5, "alpha": 0.5, "momentum": 0.9, "rounds": 6}
    expected, _, _ = oracle.usl(x, 25, seed=1, k=15, **options)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for backend in BACKENDS:
                try:
                    backend_of(backend, Points(x))
                except InputError:
                    # Not installed; tests of backends say so.
                    continue
                reg = Regularizer(**options)
                found = select(x, 25, seed=1, k=15, regularizer=reg, backend=backend)
                assert found.picks.tolist() == expected.tolist(), (backend, threads)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_copies_have_one_score_whatever_the_power(alpha):
    # Vector instructions and what is left over after them may round a power differently.
    for seed in range(40):
        x = np.random.RandomState(seed).randn(12, 3)
        x[11] = x[10]
        labels = torch.tensor([*range(10), 10, 10])
        reg = Regularizer(alpha=alpha, horizon_dist=1e9)
        found = pick(x, torch.ones(12, dtype=torch.float64), labels, 11, reg)
        assert found.indices.tolist() == list(range(11))
    values = torch.rand(20_003, dtype=torch.float64) + 0.1
    powers = same_bits(values, lambda v: v.pow_(-alpha))
    assert torch.allclose(powers, values.pow(-alpha), rtol=1e-14)
    assert torch.equal(same_bits(values[5:], lambda v: v.pow_(-alpha)), powers[5:])


def test_one_round_takes_the_densest_of_each_cluster():
    x = features("sphere", 100, 8)
    found = select(x, 7, k=10, regularizer=Regularizer(rounds=1))
    for cluster, chosen in enumerate(found.picks):
        members = (found.clusters == cluster).nonzero()[:, 0]
        assert chosen == members[found.density[members].argmax()]
    assert torch.equal(found.scores, found.density)


def test_the_regulariser_moves_picks_apart():
    x = features("sphere", 400, 8)

    def nearest(weight):
        picks = select(x, 20, k=10, regularizer=Regularizer(weight=weight)).picks
        d = oracle.distances(x[picks], x[picks]) + 1e9 * np.eye(20)
        return d.min(1).mean()

    assert nearest(5.0) > 1.2 * nearest(0.0)


@pytest.mark.parametrize("kind", ["sphere", "duplicates", "constant", "grid"])
@pytest.mark.parametrize("budget", [1, 60, 120])
def test_exactly_the_budget_of_distinct_picks(kind, budget):
    picks = select(features(kind, 120, 6), budget, k=5).picks
    assert len(set(picks.tolist())) == budget


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_block_sizes_and_threads_change_nothing(form, monkeypatch):
    x = features("duplicates", 700, 24)
    x[:350] = features("sphere", 350, 24)
    regularizer = Regularizer(rounds=4, **FORMS[form][1])
    first = select(x, 50, k=30, regularizer=regularizer)
    neighbours = find_neighbors(x, 30)
    threads = torch.get_num_threads()
    for block, scratch, tile, count in [(64, 1 << 10, 1 << 12, 1), (100, 1 << 14, 1 << 16, 3)]:
        # SUM blocks stay as they are: their size is part of the result.
        monkeypatch.setattr(regularizer_module, "BLOCK_ROWS", block)
        monkeypatch.setattr(regularizer_module, "TILE", scratch)
        monkeypatch.setattr(assignment, "ASSIGN_ELEMENTS", scratch)
        monkeypatch.setattr(assignment, "TERMS", scratch)
        for module in (assignment, distances_module, regularizer_module, neighbors_module):
            monkeypatch.setattr(module, "SCRATCH", scratch)
        monkeypatch.setattr(distances_module, "SHARE", scratch)
        torch.set_num_threads(count)
        try:
            again = find_neighbors(x, 30, memory=tile)
            other = select(x, 50, k=30, regularizer=regularizer)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(neighbours.indices, again.indices)
        assert torch.equal(neighbours.mean_distances, again.mean_distances)
        assert torch.equal(first.picks, other.picks)
        assert torch.equal(first.clusters, other.clusters)


def test_spare_clusters_use_the_first_that_have_members():
    x = features("sphere", 80, 6)
    labels = torch.arange(80) % 8
    labels[labels == 2] = 3
    density = find_neighbors(x, 5).density
    chosen = pick(x, density, labels, 5, Regularizer(rounds=3))
    assert chosen.clusters.tolist() == [0, 1, 3, 4, 5]
    assert labels[chosen.indices].tolist() == chosen.clusters.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_exact_scores_decide_between_images_that_are_nearly_equal(form, monkeypatch):
    # Twins have the same regulariser; their densities differ by less than its rounding, here made
    # as large as it may be.
    rounded = Penalties._sums
    noise = torch.Generator().manual_seed(0)

    def rounding(self, rows, own, *sets):
        errors = 2 * torch.rand(len(rows), generator=noise, dtype=torch.float64) - 1
        factors = 1 + errors * regularizer_module.TERM_ERROR
        return [sums * factors for sums in rounded(self, rows, own, *sets)]

    monkeypatch.setattr(Penalties, "_sums", rounding)
    x = features("sphere", 12, 4).repeat(2, axis=0)
    labels = torch.arange(24) // 2 % 3
    regularizer = Regularizer(weight=3.0, rounds=3, **FORMS[form][1])
    for better in (0, 1):
        density = torch.ones(24, dtype=torch.float64)
        density[better::2] += 1e-12
        chosen = pick(x, density, labels, 3, regularizer)
        assert (chosen.indices % 2 == better).all()


def test_dtypes_and_memory_maps(tmp_path):
    x = features("sphere", 100, 6)
    np.save(tmp_path / "x.npy", x)
    first = select(x, 9, k=8).picks
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for other in (mapped, torch.from_numpy(x), x.astype(np.float64), x.astype(">f4"), x[:, ::1]):
        assert torch.equal(select(other, 9, k=8).picks, first)
    half = x.astype(np.float16)
    expected = oracle.usl(half, 9, seed=0, k=8)[0]
    assert select(half, 9, k=8).picks.tolist() == expected.tolist()
    whole = np.arange(60).reshape(20, 3) % 7
    assert select(whole, 4, k=3).picks.tolist() == oracle.usl(whole, 4, seed=0, k=3)[0].tolist()


def test_inputs_are_not_changed():
    x = features("sphere", 100, 6)
    before = x.copy()
    select(x, 9, k=8)
    assert np.array_equal(x, before)


def test_global_generators_are_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    select(features("sphere", 50, 3), 5, k=4)
    random_picks(50, 5, seed=1)
    assert (torch.rand(1), np.random.rand()) == expected


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 2, 2)), r"shape \(3, 2, 2\); give a table"),
        (np.zeros(5), r"shape \(5,\)"),
        (np.zeros((0, 5)), "shape"),
        (np.array([[1.0], [np.nan]]), r"NaN or infinite values in 1 of \d+ rows \(1\)"),
        (np.array([[np.inf], [1.0]]), r"rows \(0\)"),
        (np.array([[1e300], [0.0]]), r"values beyond ±1e\+15"),
        (np.array([["a"]]), "give real numbers"),
        (np.array([[1j]]), "give real numbers"),
        (torch.zeros(2, 2, dtype=torch.bool), "give real numbers"),
    ],
)
def test_bad_features(x, message):
    with pytest.raises(InputError, match=message):
        select(x, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "a budget of 0 picks from 20 images; choose 1 to 20"),
        ({"budget": -3}, "a budget of -3"),
        ({"budget": 21}, "a budget of 21"),
        ({"k": 21}, "`k` is 21; choose 2 to 20, the number of images"),
        ({"k": 1}, "`k` is 1; choose 2 to 20"),
        ({"k": 0}, "`k` is 0"),
        ({"iterations": 0}, "`iterations` is 0"),
        ({"clusters": 2}, "`clusters` is 2; choose at least 3"),
        ({"clusters": 21}, "`clusters` is 21; choose 1 to 20"),
        ({"backend": "magic"}, "unknown `backend` 'magic'; choose one of auto, torch"),
    ],
)
def test_bad_options(options, message):
    x = features("sphere", 20, 3)
    with pytest.raises(InputError, match=message):
        select(x, **({"budget": 3, "k": 4} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": "far"}, "unknown `horizon` 'far'"),
        ({"horizon_num": 0}, "`horizon_num` is 0"),
        ({"alpha": 0.0}, "`alpha` is 0.0; choose 0.001 to 10"),
        ({"alpha": math.inf}, "`alpha` is inf"),
        ({"weight": math.nan}, "`weight` is nan; choose 0 to 1e[+]06"),
        ({"momentum": 5.0}, "`momentum` is 5.0; choose 0 to 1"),
        ({"horizon_dist": -1.0}, "`horizon_dist` is -1.0"),
    ],
)
def test_bad_regularisers(options, message):
    with pytest.raises(InputError, match=message):
        Regularizer(**options)


def test_pick_checks_what_it_is_given():
    x = features("sphere", 10, 3)
    density = torch.ones(10, dtype=torch.float64)
    with pytest.raises(InputError, match="1 clusters have members, 2 are needed"):
        pick(x, density, torch.zeros(10, dtype=torch.int64), 2, Regularizer())
    with pytest.raises(InputError, match="10 features, 10 densities and 9 cluster labels"):
        pick(x, density, torch.zeros(9, dtype=torch.int64), 1, Regularizer())
    with pytest.raises(InputError, match="below 0"):
        pick(x, density, torch.full((10,), -1), 1, Regularizer())
