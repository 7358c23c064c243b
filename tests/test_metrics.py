"""What is measured, by hand and against slow forms."""

import math

import numpy as np
import pytest
import torch
from helpers import unit

from usl.metrics import alignment, cluster_summary, effective_rank, uniformity, weighted_knn


def test_monitors_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert alignment(z, other) == pytest.approx((0 + 2 + 4) / 3)
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)
    assert uniformity(z) == pytest.approx(expected)
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(other) == pytest.approx(1)
    assert uniformity(other) == pytest.approx(0)


def test_weighted_knn_equals_the_slow_form(monkeypatch):
    train, test = unit(60, 5, 0).detach().float(), unit(25, 5, 1).detach().float()
    labels = torch.arange(60) % 4
    answers = torch.arange(25) % 4
    right = 0
    for i in range(25):
        s = train @ test[i]
        votes = [0.0] * 4
        for j in s.argsort(descending=True)[:7].tolist():
            votes[labels[j]] += math.exp(float(s[j]) / 0.07)
        right += votes.index(max(votes)) == answers[i]
    assert weighted_knn(train, labels, test, answers, k=7) == pytest.approx(100 * right / 25)
    longer = weighted_knn(train * torch.rand(60, 1).add(0.5), labels, test * 3, answers, k=7)
    assert longer == pytest.approx(100 * right / 25)
    for entries in (1, 300):
        monkeypatch.setattr("usl.metrics.ENTRIES", entries)
        assert weighted_knn(train, labels, test, answers, k=7) == pytest.approx(100 * right / 25)


def test_summary_of_clusters_by_hand():
    clusters, labels = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 0])
    confidence = np.array([0.9, 0.95, 0.96, 1.0, 0.5, 0.99])
    share = np.array([0.25, 0.5, 0.0, 0.25, 0.0])
    found = cluster_summary(clusters, confidence, share, threshold=0.95)
    assert found == {
        "nonempty": 3, "largest": 3, "smallest": 0, "above": 0.5,
        "confidence": pytest.approx(5.3 / 6), "entropy": pytest.approx(1.5 * math.log(2)),
    }  # fmt: skip
    more = cluster_summary(clusters, confidence, share, threshold=0.95, labels=labels)
    assert {k: more[k] for k in found} == found
    assert more["macc"] == pytest.approx(100 * (1 + 2 + 1) / 6)

    table = np.array([[1, 1], [1, 2], [1, 0]])

    def entropy(counts):
        p = counts[counts > 0] / counts.sum()
        return -(p * np.log(p)).sum()

    rows, columns = table.sum(1), table.sum(0)
    shared = entropy(rows) + entropy(columns) - entropy(table.ravel())
    assert more["nmi"] == pytest.approx(2 * shared / (entropy(rows) + entropy(columns)))

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    chance = pairs(rows) * pairs(columns) / 15
    best = (pairs(rows) + pairs(columns)) / 2
    assert more["ari"] == pytest.approx((pairs(table) - chance) / (best - chance))


def test_summary_of_clusters_equals_scikit_learn():
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    random = np.random.RandomState(2)
    clusters, labels = random.randint(9, size=200), random.randint(4, size=200)
    found = cluster_summary(
        clusters, random.rand(200), np.full(10, 0.1), threshold=0.5, labels=labels
    )
    majority = sum(np.bincount(labels[clusters == c]).max() for c in range(9))
    assert found["macc"] == pytest.approx(majority / 2)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))
