"""Confidence, picks and pseudo-labels of USL-T, by hand and against slow forms."""

import numpy as np
import pytest
import torch
from helpers import close
from oracles.uslt import slow_picks, slow_pseudo_labels

from usl import InputError
from usl.selectors.uslt import best_of_clusters, confident, pseudo_labels


def test_picks_by_hand():
    clusters = torch.tensor([2, 0, 2, 2, 0, 5, 2])
    score = torch.tensor([0.5, 0.9, 0.7, 0.7, 0.8, 0.1, 0.2])
    # Clusters 1, 3 and 4 are empty. One pick each, in index order; of equal ones the first.
    assert best_of_clusters(clusters, score, 3).tolist() == [1, 2, 5]
    assert best_of_clusters(clusters, score, 3, by_size=True).tolist() == [2, 1, 5]
    # Fewer: the largest clusters.
    assert best_of_clusters(clusters, score, 2).tolist() == [1, 2]
    assert best_of_clusters(clusters, score, 1).tolist() == [2]
    # More: the next best of the largest in turn.
    assert best_of_clusters(clusters, score, 5).tolist() == [1, 2, 5, 3, 4]
    assert best_of_clusters(clusters, score, 6).tolist() == [1, 2, 5, 3, 4, 0]
    assert best_of_clusters(clusters, score, 7).tolist() == [1, 2, 5, 3, 4, 0, 6]
    assert best_of_clusters(clusters, score, 7, by_size=True).tolist() == [2, 1, 5, 3, 4, 0, 6]
    # Clusters of equal size: the lowest index first.
    equal = torch.tensor([3, 1, 3, 1])
    assert best_of_clusters(equal, torch.ones(4), 1).tolist() == [1]
    assert best_of_clusters(equal, torch.ones(4), 3).tolist() == [1, 0, 3]
    for budget in (0, -1, 8):
        with pytest.raises(InputError, match=f"a budget of {budget} picks from 7 images"):
            best_of_clusters(clusters, score, budget)


@pytest.mark.parametrize("by_size", [False, True])
def test_picks_equal_the_slow_form(by_size):
    random = np.random.RandomState(0)
    for _ in range(60):
        n = random.randint(1, 40)
        clusters = random.randint(random.randint(1, 30), size=n)
        score = random.randint(4, size=n) if random.rand() < 0.5 else random.rand(n)
        for budget in {1, n, random.randint(1, n + 1), random.randint(1, n + 1)}:
            found = best_of_clusters(
                torch.from_numpy(clusters), torch.from_numpy(score), budget, by_size=by_size
            ).tolist()
            assert found == slow_picks(clusters.tolist(), score.tolist(), budget, by_size)
            assert len(set(found)) == budget


def test_confidence_by_hand():
    # Probabilities of two heads, by image.
    first, second = torch.tensor(
        [
            [[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.4, 0.2, 0.4]],
            [[0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [0.2, 0.6, 0.2]],
        ],
        dtype=torch.float64,
    )
    logits = torch.stack([first, second], dim=1).log() + 3
    clusters, own = confident(logits, head=0, mean_of_heads=False)
    assert clusters.tolist() == [0, 1, 0] and own.dtype == torch.float64
    close(own, first.amax(1))
    clusters, mean = confident(logits, head=0, mean_of_heads=True)
    assert clusters.tolist() == [0, 1, 0]
    close(mean, (first.amax(1) + second.amax(1)) / 2)
    clusters, own = confident(logits, head=1, mean_of_heads=False)
    assert clusters.tolist() == [2, 2, 1]
    close(own, second.amax(1))
    for head in (-1, 2):
        with pytest.raises(InputError, match=f"`head` is {head}; the checkpoint has hea"):
            confident(logits, head=head, mean_of_heads=True)


def test_equal_logits_belong_to_the_lowest_cluster():
    logits = torch.zeros(70, 1, 300)
    logits[:, :, 7::9] = 1.0
    clusters, _ = confident(logits, head=0, mean_of_heads=False)
    assert clusters.tolist() == [7] * 70


def test_pseudo_labels_by_hand():
    clusters = torch.tensor([0, 0, 0, 1, 1, 2])
    distances = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.5, 0.1]).double()

    def given(picks, labels, count):
        picks, labels = torch.tensor(picks), torch.tensor(labels)
        return pseudo_labels(clusters, distances, picks, labels, count=count).tolist()

    assert given([1, 3], [7, 5], 1) == [-1, 7, -1, 5, -1, -1]
    assert given([1, 3], [7, 5], 2) == [-1, 7, 7, 5, 5, -1]
    assert given([1, 3], [7, 5], 20) == [7, 7, 7, 5, 5, -1]
    # Two picks of one cluster: each its own label, the others that of the first.
    assert given([1, 3, 2], [7, 5, 6], 20) == [7, 7, 6, 5, 5, -1]
    assert given([1, 3, 0], [7, 5, 6], 1) == [6, 7, -1, 5, -1, -1]
    with pytest.raises(InputError, match="`pseudo_labels` is 0; choose at least 1"):
        given([1], [7], 0)


def test_pseudo_labels_equal_the_slow_form():
    random = np.random.RandomState(1)
    for _ in range(30):
        n = random.randint(2, 50)
        clusters, distances = random.randint(8, size=n), random.randint(6, size=n) / 4
        picks = best_of_clusters(
            torch.from_numpy(clusters), torch.from_numpy(-distances), random.randint(1, n + 1)
        )
        labels, count = torch.from_numpy(random.randint(5, size=len(picks))), random.randint(1, 9)
        found = pseudo_labels(
            torch.from_numpy(clusters), torch.from_numpy(distances), picks, labels, count=count
        )
        slow = slow_pseudo_labels(
            clusters.tolist(), distances.tolist(), picks.tolist(), labels.tolist(), count
        )
        assert found.tolist() == slow
        assert torch.equal(found[picks], labels)
