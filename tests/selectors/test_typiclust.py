"""TypiClust against a slow form written from the paper."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.geometry.kmeans import Clusters, kmeans
from usl.selectors.typiclust import typical_picks


def slow(x, labels, budget):
    """Cluster by cluster, as the paper says it."""
    x = x.astype(np.float64)
    ranked = {}
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        k = min(20, max(1, len(members) // 2))
        typicality = []
        for i in members:
            others = np.sort([np.linalg.norm(x[i] - x[j]) for j in members if j != i])[:k]
            typicality.append(-others.mean() if len(others) else 0.0)
        ranked[cluster] = [members[r] for r in np.argsort(-np.array(typicality), kind="stable")]
    order = sorted(ranked, key=lambda c: (len(ranked[c]) <= 5, -len(ranked[c]), c))
    picks = []
    while len(picks) < budget:
        turn = [ranked[c].pop(0) for c in order if ranked[c]]
        picks += turn
    return [int(pick) for pick in picks[:budget]]


@pytest.mark.parametrize("budget", [1, 8, 30])
def test_it_is_the_papers_rule(budget):
    x = features("sphere", 120, 4)
    clusters = kmeans(x, 8, seed=2, quiet=True)
    found = typical_picks(x, clusters, budget).tolist()
    assert found == slow(x, clusters.labels.numpy(), budget)


def test_clusters_of_at_most_five_come_last():
    x = np.concatenate([np.linspace(0, 1, 6), np.linspace(50, 51, 5), np.linspace(90, 91, 9)])
    labels = torch.tensor([0] * 6 + [1] * 5 + [2] * 9)
    clusters = Clusters(labels, torch.tensor([[0.5], [50.5], [90.5]], dtype=torch.float64))
    picks = typical_picks(x[:, None], clusters, 4)
    assert labels[picks].tolist() == [2, 0, 1, 2]


def test_clusters_of_other_features():
    clusters = kmeans(features("sphere", 20, 3), 2, seed=0, quiet=True)
    with pytest.raises(InputError, match="30 features and 20 cluster labels"):
        typical_picks(features("sphere", 30, 3), clusters, 2)
