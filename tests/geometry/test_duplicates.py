"""Unusually near points, against a slow oracle and by hand."""

import numpy as np
import pytest
import torch
from helpers import features

from usl.geometry.duplicates import nearest_others, stand_ins, unusual_nearness
from usl.geometry.neighbors.exact import find_neighbors
from usl.geometry.points import Points


def slow_stand_ins(x, threshold):
    """In order: the first earlier row that stands for itself and is nearer than the threshold."""
    first = list(range(len(x)))
    for i in range(len(x)):
        for j in range(i):
            if first[j] == j and ((x[i].astype(float) - x[j]) ** 2).sum() < threshold:
                first[i] = j
                break
    return first


def found(x, threshold):
    points = Points(x)
    near = nearest_others(find_neighbors(points, min(5, len(x))))
    return stand_ins(points, near, threshold).tolist()


@pytest.mark.parametrize("kind", ["sphere", "grid", "duplicates", "constant", "far"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_stand_ins_are_the_oracles(kind, share):
    x = features(kind, 300, 4)
    apart = np.unique(((x[:, None].astype(float) - x) ** 2).sum(axis=2))
    # One of the distances themselves, too: nearer, not as near.
    threshold = float(apart[int(share * (len(apart) - 1))])
    assert found(x, threshold) == slow_stand_ins(x, threshold)


def test_a_chain_is_not_merged_into_one():
    x = np.array([[0.0], [0.9], [1.8], [2.7], [9.0]])
    assert found(x, 1.0) == [0, 0, 2, 2, 4]


def test_more_than_a_block(monkeypatch):
    x = features("sphere", 200, 3)
    whole = found(x, 0.05)
    monkeypatch.setattr("usl.geometry.duplicates.BLOCK", 7)
    assert found(x, 0.05) == whole and len(set(whole)) < 150


def test_distances_to_others():
    x = np.array([[0.0], [3.0], [3.0], [3.0], [7.0]])
    assert nearest_others(find_neighbors(x, 2)).tolist() == [9, 0, 0, 0, 16]
    assert nearest_others(find_neighbors(x[:1], 1)).tolist() == [torch.inf]


def test_the_fence_by_hand():
    # Logarithms 0 to 8, and one far below: quartiles 2 and 6 without it.
    usual = torch.exp(torch.arange(9.0))
    # e⁻¹⁰ is 4.5399…e-5.
    assert unusual_nearness(usual) == 4.53e-5
    assert unusual_nearness(torch.tensor([0.0, torch.inf])) == 0.0
    # All as usual: the fence is no higher.
    assert 1.99 <= unusual_nearness(torch.full((5,), 2.0)) <= 2.0
    assert unusual_nearness(torch.full((2,), 3.99999996)) == 3.99


def test_copies_with_a_little_noise_lie_under_the_fence():
    random = np.random.RandomState(0)
    x = random.randn(2000, 16)
    x[:100] = x[100:200] + 1e-3 * random.randn(100, 16)
    near = nearest_others(find_neighbors(x, 3))
    threshold = unusual_nearness(near)
    assert (near < threshold).sum() == 200
    assert (stand_ins(Points(x), near, threshold) != torch.arange(2000)).sum() == 100
