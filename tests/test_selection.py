"""Picks against a slow float64 oracle, and what must not change them."""

import math

import numpy as np
import oracle
import pytest
import torch
from usl.selection.baselines import central_picks, stratified_picks
from usl.selection.kmeans import Clusters, assign, kmeans, member_sums
from usl.selection.neighbors import find_neighbors
from usl.selection.points import Points, fold_sum, squared_distances
from usl.selection.random import random_picks
from usl.selection.usl import pick

from usl import InputError, Regularizer, select
from usl.selection import kmeans as kmeans_module
from usl.selection import neighbors as neighbors_module
from usl.selection import points as points_module
from usl.selection import usl as usl_module


def features(kind, n, d, seed=0):
    random = np.random.RandomState(seed)
    if kind == "sphere":
        x = random.randn(6, d)[random.randint(6, size=n)] + 0.5 * random.randn(n, d)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    if kind == "grid":  # many exact ties
        return random.randint(0, 3, size=(n, d)).astype(np.float32)
    if kind == "duplicates":
        return random.randn(n // 5, d).astype(np.float32)[random.randint(n // 5, size=n)]
    if kind == "constant":
        return np.full((n, d), 0.3, dtype=np.float32)
    if kind == "far":  # far from the origin, where plain float32 products lose everything
        return random.randn(n, d) + 1e5
    if kind == "outlier":
        x = random.randn(n, d)
        x[n // 2] *= 1e6
        return x
    if kind == "tiny":
        return random.randn(n, d) * 1e-20
    raise ValueError(kind)


FORMS = {
    "dist": ({"horizon": 1.5}, {"horizon_dist": 1.5}),
    "num": ({"form": "num", "horizon": 4}, {"horizon": "num", "horizon_num": 4}),
    "num-own": (
        {"form": "num", "horizon": 4, "exclude_own": True},
        {"horizon": "num", "horizon_num": 4, "exclude_same_cluster": True},
    ),
}


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
        monkeypatch.setattr(usl_module, "BLOCK_ROWS", block)
        monkeypatch.setattr(kmeans_module, "ASSIGN_ELEMENTS", scratch)
        for module in (kmeans_module, usl_module, neighbors_module):
            monkeypatch.setattr(module, "SCRATCH", scratch)
        torch.set_num_threads(count)
        try:
            again = find_neighbors(x, 30, tile_bytes=tile)
            other = select(x, 50, k=30, regularizer=regularizer)
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(neighbours.indices, again.indices)
        assert torch.equal(neighbours.spread, again.spread)
        assert torch.equal(first.picks, other.picks)
        assert torch.equal(first.clusters, other.clusters)


def test_neighbours_equal_the_oracle_through_every_tile(monkeypatch):
    monkeypatch.setattr(neighbors_module, "TILE_COLUMNS", 50)
    for kind in ("sphere", "grid", "duplicates"):
        x = features(kind, 230, 5)
        d, indices = oracle.neighbors(x, 21)
        found = find_neighbors(x, 21, tile_bytes=1 << 12)
        assert found.indices.tolist() == indices.tolist()
        np.testing.assert_array_equal(found.distances.numpy(), d.astype(np.float32))


def test_equal_vectors_keep_the_lowest_index_as_neighbour():
    x = torch.zeros(50, 3)
    x[49] = 1.0
    found = find_neighbors(x, 4)
    assert found.indices[:49].tolist() == [[0, 1, 2, 3]] * 49
    assert found.indices[49].tolist() == [49, 0, 1, 2]


def test_fold_sum_and_distances():
    for n in (1, 2, 3, 7, 64, 100):
        x = torch.randn(5, n, dtype=torch.float64)
        torch.testing.assert_close(fold_sum(x.clone()), x.sum(1), rtol=1e-13, atol=1e-13)
    a = torch.tensor([[1.0, 2.0]])
    assert squared_distances(a, torch.tensor([[4.0, 6.0]])).tolist() == [25.0]


def test_kmeans_starts_from_the_published_draw():
    x = torch.arange(40.0)[:, None]
    torch.manual_seed(3)
    first = torch.randperm(40)[:40]
    assert kmeans(x, 40, seed=3).labels[first].tolist() == list(range(40))


def test_early_stop_gives_what_all_iterations_give():
    x = features("sphere", 500, 4)
    labels, centroids = oracle.kmeans(x, 9, seed=1, iterations=300)
    found = kmeans(x, 9, seed=1, iterations=300)
    assert found.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(found.centroids.numpy(), centroids, rtol=1e-12)


def test_an_emptied_cluster_stays_empty_and_is_then_filled():
    # Two of the three first centroids are the same point, so one of them wins nothing.
    x = torch.tensor([[0.0], [0.0], [10.0], [11.0], [14.0]])
    seed = next(
        s for s in range(100)
        if {0, 1} <= set(torch.randperm(5, generator=torch.Generator().manual_seed(s))[:3].tolist())
    )  # fmt: skip
    left = kmeans(x, 3, seed=seed)
    assert len(left.labels.unique()) == 2
    assert torch.isfinite(left.centroids).all()
    filled = kmeans(x, 3, seed=seed, alive=3)
    # 14 is the farthest from its centroid, 35 / 3.
    assert filled.labels.bincount().tolist() != left.labels.bincount().tolist()
    assert (filled.labels[4] != filled.labels[3]) and len(filled.labels.unique()) == 3


def test_spare_clusters_use_the_first_that_have_members():
    x = features("sphere", 80, 6)
    labels = torch.arange(80) % 8
    labels[labels == 2] = 3
    density = find_neighbors(x, 5).density
    chosen = pick(x, density, labels, 5, Regularizer(rounds=3))
    assert chosen.clusters.tolist() == [0, 1, 3, 4, 5]
    assert labels[chosen.indices].tolist() == chosen.clusters.tolist()


def test_float64_decides_what_float32_cannot_in_k_means():
    # Points a hair's breadth on either side of the plane between two centroids.
    random = np.random.RandomState(0)
    centroids = torch.from_numpy(random.randn(2, 8))
    middle, across = centroids.mean(0), centroids[1] - centroids[0]
    along = torch.from_numpy(random.randn(400, 8))
    along -= (along @ across)[:, None] * across / (across @ across)
    side = torch.from_numpy(random.choice([-1.0, 1.0], 400))
    x = middle + along + side[:, None] * 1e-10 * across
    labels = assign(Points(x), centroids)
    assert labels.tolist() == (side > 0).long().tolist()


@pytest.mark.parametrize("form", FORMS)
def test_exact_scores_decide_between_images_that_are_nearly_equal(form, monkeypatch):
    # Twins have the same regulariser; their densities differ by less than its rounding, here made
    # as large as it may be.
    rounded = usl_module._Picker._penalty
    noise = torch.Generator().manual_seed(0)

    def rounding(self, rows, picks):
        errors = 2 * torch.rand(len(rows), generator=noise, dtype=torch.float64) - 1
        return rounded(self, rows, picks) * (1 + errors * usl_module.TERM_ERROR)

    monkeypatch.setattr(usl_module._Picker, "_penalty", rounding)
    x = features("sphere", 12, 4).repeat(2, axis=0)
    labels = torch.arange(24) // 2 % 3
    regularizer = Regularizer(weight=3.0, rounds=3, **FORMS[form][1])
    for better in (0, 1):
        density = torch.ones(24, dtype=torch.float64)
        density[better::2] += 1e-12
        chosen = pick(x, density, labels, 3, regularizer)
        assert (chosen.indices % 2 == better).all()


def test_member_sums_do_not_depend_on_threads():
    x = torch.randn(40000, 7)
    labels = torch.randint(0, 30, (40000,))
    threads = torch.get_num_threads()
    sums = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        sums.append(member_sums(x, labels, 30)[0])
    torch.set_num_threads(threads)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    expected = torch.stack([x[labels == c].double().sum(0) for c in range(30)])
    torch.testing.assert_close(sums[0], expected, rtol=1e-11, atol=1e-11)


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
        (np.array([[1.0], [np.nan]]), "NaN or infinite values, first in row 1"),
        (np.array([[np.inf], [1.0]]), "first in row 0"),
        (np.array([[1e300], [0.0]]), r"values beyond ±1e\+15"),
        (np.array([["a"]]), "give real numbers"),
        (np.array([[1j]]), "give real numbers"),
        (torch.zeros(2, 2, dtype=torch.bool), "give real numbers"),
    ],
)
def test_bad_features(x, message):
    with pytest.raises(InputError, match=message):
        select(x, 1, k=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "a budget of 0 picks from 20 images; choose 1 to 20"),
        ({"budget": -3}, "a budget of -3"),
        ({"budget": 21}, "a budget of 21"),
        ({"k": 21}, "K = 21 neighbours of 20 images; choose 1 to 20"),
        ({"k": 0}, "K = 0"),
        ({"iterations": 0}, "0 k-means iterations"),
        ({"clusters": 2}, "2 clusters for 3 picks"),
        ({"clusters": 21}, "21 clusters of 20 images"),
        ({"backend": "magic"}, "unknown kNN backend 'magic'; choose one of auto, torch"),
    ],
)
def test_bad_options(options, message):
    x = features("sphere", 20, 3)
    with pytest.raises(InputError, match=message):
        select(x, **({"budget": 3, "k": 4} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": "far"}, "unknown horizon 'far'"),
        ({"horizon_num": 0}, "a horizon of 0 picks"),
        ({"alpha": 0.0}, "alpha is 0.0; choose 0.001 to 10"),
        ({"alpha": math.inf}, "alpha is inf"),
        ({"weight": math.nan}, "weight is nan; choose 0 to 1e[+]06"),
        ({"momentum": 5.0}, "momentum is 5.0; choose 0 to 1"),
        ({"horizon_dist": -1.0}, "horizon_dist is -1.0"),
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


def test_stratified_picks_have_equal_shares():
    labels = torch.arange(100) % 7
    picks = stratified_picks(labels, 30, seed=2)
    shares = labels[picks].bincount(minlength=7)
    assert len(picks.unique()) == 30
    assert sorted(shares.tolist()) == [4, 4, 4, 4, 4, 5, 5]
    small = stratified_picks(torch.tensor([0, 1, 1, 1, 2, 2]), 5, seed=0)
    assert torch.tensor([0, 1, 1, 1, 2, 2])[small].bincount().tolist() == [1, 2, 2]


def test_central_picks_are_nearest_to_their_centroid():
    x = features("sphere", 60, 4)
    grouped = kmeans(x, 6, seed=0)
    expected = [
        min((labels == c).nonzero()[0], key=lambda i: ((x[i] - centroids[c]) ** 2).sum())
        for labels, centroids in [(grouped.labels.numpy(), grouped.centroids.numpy())]
        for c in range(6)
    ]
    assert central_picks(x, grouped).tolist() == expected
    tied = Clusters(torch.tensor([1, 1, 0]), torch.tensor([[5.0], [1.0]], dtype=torch.float64))
    assert central_picks(torch.tensor([[2.0], [0.0], [5.0]]), tied).tolist() == [2, 0]


def test_points_are_prepared_once():
    points = Points(features("sphere", 50, 3))
    assert points_module.as_points(points) is points
    assert 0.5 < points.norms.max().sqrt() <= 1.0
