"""Picks by class and by cluster."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.geometry.kmeans import Clusters, kmeans
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points
from usl.selectors import by_cluster
from usl.selectors.by_cluster import best_clusters, central_picks, stratified_picks
from usl.selectors.farthest import spread_picks
from usl.selectors.registry import SELECTORS, Context
from usl.selectors.regularizer import Regularizer
from usl.selectors.usl import pick


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


def test_the_best_of_several_starts():
    x = features("sphere", 90, 3)

    def inertia(found):
        rows = torch.from_numpy(x).double() - found.centroids[found.labels]
        return float(rows.square().sum())

    starts = [kmeans(x, 12, seed=seed, quiet=True) for seed in range(16, 24)]
    best = best_clusters(x, 12, seed=2)
    assert inertia(best) == min(map(inertia, starts)) < max(map(inertia, starts))


def test_the_tightest_of_several_with_spread_starts(monkeypatch):
    x = features("sphere", 90, 3)

    def inertia(found):
        rows = torch.from_numpy(x).double() - found.centroids[found.labels]
        return float(rows.square().sum())

    def expected(step):
        starts = [step * spread_picks(x[::step], 12, seed=seed) for seed in range(16, 24)]
        found = [kmeans(x, 12, seed=0, start=start, quiet=True) for start in starts]
        return min(found, key=inertia)

    tightest = best_clusters(x, 12, seed=2, spread=True)
    assert torch.equal(tightest.labels, expected(1).labels)
    assert inertia(tightest) < inertia(best_clusters(x, 12, seed=2))
    # Of many images only some are drawn from, but as many as there are to be clusters.
    monkeypatch.setattr(by_cluster, "DRAWN_FROM", 30)
    some = best_clusters(x, 12, seed=2, spread=True)
    assert torch.equal(some.labels, expected(3).labels)
    assert best_clusters(x, 80, seed=2, spread=True).sizes.count_nonzero() >= 75
    with pytest.raises(InputError, match="`clusters` is 0; choose 1 to 90, the images"):
        best_clusters(x, 0, seed=1)


def test_usl_on_the_tightest_clusters():
    x = features("sphere", 80, 4)
    context = Context(Points(x), regularizer=Regularizer(weight=2.0, horizon="num"))
    clusters = best_clusters(x, 9, seed=4, nonempty=9, spread=True)
    density = find_neighbors(x, 20).density
    expected = pick(x, density, clusters.labels, 9, context.regularizer).indices
    assert torch.equal(SELECTORS["usl-tightest"](context, 9, seed=4), expected)
    centres = central_picks(x, clusters)
    assert torch.equal(SELECTORS["tightest"](context, 9, seed=4), centres)
    assert not torch.equal(centres.sort().values, expected.sort().values)


def test_k_means_from_given_rows():
    x = np.array([[0.0], [0.2], [5.0], [5.2], [9.0]], dtype=np.float32)
    found = kmeans(x, 2, seed=3, start=torch.tensor([0, 1]), quiet=True)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    once = kmeans(x, 2, seed=3, start=torch.tensor([0, 1]), iterations=1, quiet=True)
    assert once.labels.tolist() == [0, 1, 1, 1, 1]
