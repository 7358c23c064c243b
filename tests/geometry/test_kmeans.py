"""k-means against a slow float64 oracle, and where float32 could not decide."""

import numpy as np
import pytest
import torch
from helpers import features
from oracles import selection as oracle

from usl import select, shards
from usl.geometry import int16
from usl.geometry.assignment import Assigner
from usl.geometry.kmeans import _part_by_rank, kmeans, member_sums
from usl.geometry.points import Points, blocks
from usl.geometry.products import Float32, Int16


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
    filled = kmeans(x, 3, seed=seed, nonempty=3)
    # 14 is the farthest from its centroid, 35 / 3.
    assert filled.labels.bincount().tolist() != left.labels.bincount().tolist()
    assert (filled.labels[4] != filled.labels[3]) and len(filled.labels.unique()) == 3


def stored_often(pictures, copies, dim, seed=0):
    x = np.random.RandomState(seed).randn(pictures, dim)
    return x[np.random.RandomState(seed + 1).permutation(np.repeat(np.arange(pictures), copies))]


@pytest.mark.parametrize("budget", [20, 50])
def test_no_pick_is_a_copy_of_another_while_other_pictures_are_left(budget):
    # Of 50 pictures stored 20 times each, first centroids are often copies of each other.
    for seed in range(4):
        x = stored_often(50, 20, 8, seed)
        grouped = kmeans(x, budget, seed=seed, nonempty=budget)
        assert len(grouped.labels.unique()) == budget
        # A cluster has all copies of its pictures.
        clusters = {}
        for row, label in zip(x.tolist(), grouped.labels.tolist(), strict=True):
            clusters.setdefault(tuple(row), set()).add(label)
        assert all(len(labels) == 1 for labels in clusters.values())
        picks = select(x, budget, k=20, seed=seed).picks
        assert len(np.unique(x[picks], axis=0)) == budget


def test_copies_are_taken_only_when_nothing_else_is_left():
    x = stored_often(5, 4, 3)
    picks = select(x, 8, k=4, seed=0).picks
    assert len(set(picks.tolist())) == 8 and len(np.unique(x[picks], axis=0)) == 5
    everything = select(x, 20, k=4, seed=0).picks
    assert sorted(everything.tolist()) == list(range(20))


def test_the_farthest_from_all_centres_is_taken_first():
    # All first centroids are copies of 0, so three clusters are to be filled.
    x = torch.tensor([0.0, 0, 0, 0, 10, 11, -9])[:, None]
    seed = next(
        s for s in range(10_000)
        if set(torch.randperm(7, generator=torch.Generator().manual_seed(s))[:4].tolist())
        == {0, 1, 2, 3}
    )  # fmt: skip
    filled = kmeans(x, 4, seed=seed, nonempty=4, iterations=1)
    # The centroid is 12 / 7: 11 is the farthest from it, then -9; 10 is near 11 by then, so that
    # what is left is nearest to neither is 0, with its copies.
    taken = [{tuple(v) for v in x[filled.labels == c].tolist()} for c in range(4)]
    assert {(11.0,)} in taken and {(-9.0,)} in taken and {(0.0,)} in taken
    assert (filled.labels[:4] == filled.labels[0]).all()


def test_float64_decides_what_float32_cannot_in_k_means():
    # Points a hair's breadth on either side of the plane between two centroids.
    random = np.random.RandomState(0)
    centroids = torch.from_numpy(random.randn(2, 8))
    middle, across = centroids.mean(0), centroids[1] - centroids[0]
    along = torch.from_numpy(random.randn(400, 8))
    along -= (along @ across)[:, None] * across / (across @ across)
    side = torch.from_numpy(random.choice([-1.0, 1.0], 400))
    x = middle + along + side[:, None] * 1e-10 * across
    everyone = torch.ones(2, dtype=torch.bool)
    labels = Assigner(Points(x))(centroids, everyone, everyone)
    assert labels.tolist() == (side > 0).long().tolist()


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "far"])
@pytest.mark.parametrize("product", [Float32, Int16])
def test_compiled_assignment_gives_what_torch_gives(monkeypatch, kind, product):
    if product is Int16 and "+avx2" not in int16.FEATURES:
        pytest.skip("no products of int16 on this CPU")
    x = features(kind, 1200, 6)
    monkeypatch.setattr("usl.geometry.assignment.TERMS", 1 << 10)
    monkeypatch.setattr("usl.geometry.products.products_of", product)
    found = [kmeans(x, clusters, seed=2) for clusters in (1, 7, 90)]
    monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    for one in found:
        expected = kmeans(x, len(one.centroids), seed=2)
        assert torch.equal(one.labels, expected.labels)
        assert torch.equal(one.centroids, expected.centroids)


def test_member_sums_do_not_depend_on_threads():
    x = torch.randn(40000, 7)
    labels = torch.randint(0, 30, (40000,))
    threads = torch.get_num_threads()
    sums = []
    for count in (1, 2, 4):
        torch.set_num_threads(count)
        sums.append(member_sums(Points(x), labels, torch.ones(30, dtype=torch.bool)))
    torch.set_num_threads(threads)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    expected = torch.stack([x[labels == c].double().sum(0) for c in range(30)])
    torch.testing.assert_close(sums[0], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_compiled_sums_have_the_bits_of_torchs(monkeypatch, kind):
    monkeypatch.setattr("usl.geometry.points.blocks.__defaults__", (64,))
    random = np.random.RandomState(0)
    x = torch.from_numpy(random.randn(1000, 9) * 10.0 ** random.randint(-6, 6, (1000, 1))).to(kind)
    labels = torch.from_numpy(random.randint(7, size=1000))
    wanted = torch.arange(9) != 3
    sums = member_sums(Points(x), labels, wanted)
    monkeypatch.setattr("usl.geometry.jit.works", lambda: False)
    assert torch.equal(sums, member_sums(Points(x), labels, wanted))
    # As on a GPU.
    parts = [_part_by_rank(x[a:b], labels[a:b], wanted) for a, b in blocks(len(x))]
    assert torch.equal(sums, sum(parts))
    assert not sums[3].any() and sums[2].all()


@pytest.mark.parametrize("stopped", [1, 2, 6])
def test_a_stopped_kmeans_goes_on_to_the_same_clusters(tmp_path, monkeypatch, stopped):
    # Copies, so that clusters empty on the way.
    x = np.concatenate([features("sphere", 900, 4), stored_often(3, 40, 4)])
    expected = kmeans(x, 60, seed=1, iterations=12, nonempty=60)
    monkeypatch.setattr(shards, "SAVE_EVERY", 0.0)
    calls = count_assignments(monkeypatch, stop_after=stopped)
    options = {"seed": 1, "iterations": 12, "nonempty": 60, "kept": tmp_path / "k"}
    with pytest.raises(KeyboardInterrupt):
        kmeans(x, 60, **options)
    calls.clear()
    found = kmeans(x, 60, **options)
    assert len(calls) == 12 - stopped
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.centroids, expected.centroids)
    assert len(kmeans(x, 60, **options | {"source": {"another": 1}}).labels) == len(x)
    assert len(calls) == 12 - stopped + 12


def count_assignments(monkeypatch, *, stop_after):
    """A list that grows with each assignment; in the one after so many somebody presses Ctrl-C."""
    calls, stops, whole = [], [stop_after], Assigner.__call__

    def counted(self, *given):
        if [len(calls)] == stops:
            stops.clear()
            raise KeyboardInterrupt
        calls.append(1)
        return whole(self, *given)

    monkeypatch.setattr(Assigner, "__call__", counted)
    return calls
