"""Picks by class and by cluster."""

import torch
from helpers import features

from usl.geometry.kmeans import Clusters, kmeans
from usl.selectors.by_cluster import central_picks, stratified_picks


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
