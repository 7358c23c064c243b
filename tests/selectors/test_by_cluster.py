"""Picks by class and by cluster."""

import numpy as np
import torch
from helpers import features

from usl.geometry.kmeans import Clusters, kmeans
from usl.selectors.by_cluster import best_clusters, central_picks, stratified_picks


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


def test_k_means_from_given_rows():
    x = np.array([[0.0], [0.2], [5.0], [5.2], [9.0]], dtype=np.float32)
    found = kmeans(x, 2, seed=3, start=torch.tensor([0, 1]), quiet=True)
    assert found.labels.tolist() == [0, 0, 1, 1, 1]
    once = kmeans(x, 2, seed=3, start=torch.tensor([0, 1]), iterations=1, quiet=True)
    assert once.labels.tolist() == [0, 1, 1, 1, 1]
