"""ActiveFT against autograd, and what must not change its picks."""

import numpy as np
import pytest
import torch
from helpers import features

from usl import InputError
from usl.geometry import assignment, distances
from usl.selectors import activeft
from usl.selectors.activeft import trained_picks


def slow(x, budget, seed):
    """The loss as printed, by autograd."""
    x = torch.nn.functional.normalize(torch.from_numpy(x).double())
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(x), generator=generator)[:budget]
    theta = x[start].clone().requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=1e-3)
    for _ in range(activeft.ITERATIONS):
        loss = -(x @ theta.T / 0.07).amax(dim=1).mean()
        similar = theta @ theta.T / 0.07
        if budget > 1:
            others = similar[~torch.eye(budget, dtype=torch.bool)].reshape(budget, -1)
            loss = loss + others.logsumexp(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            theta /= theta.norm(dim=1, keepdim=True)
    picks = []
    for row in theta.detach():
        distances = (x - row).square().sum(dim=1)
        distances[picks] = np.inf
        picks.append(int(distances.argmin()))
    return picks


@pytest.mark.parametrize("budget", [1, 6, 20])
def test_it_is_the_papers_rule(budget):
    # Lengths play no part.
    x = features("sphere", 150, 6) * np.linspace(1, 3, 150, dtype=np.float32)[:, None]
    assert trained_picks(x, budget, seed=4).tolist() == slow(x, budget, 4)


def test_points_may_leave_the_place_where_all_images_lie():
    """As they do on the features of a network, which are of one half of the sphere."""
    x = 0.02 * features("sphere", 150, 6) + np.eye(6, dtype=np.float32)[0]
    assert trained_picks(x, 12, seed=2).tolist() == slow(x, 12, 2)


def test_the_same_picks_for_any_block(monkeypatch):
    x = features("sphere", 120, 5)
    expected = trained_picks(x, 9, seed=1).tolist()
    monkeypatch.setattr(assignment, "ASSIGN_ELEMENTS", 64)
    monkeypatch.setattr(distances, "SHARE", 32)
    assert trained_picks(x, 9, seed=1).tolist() == expected


def test_rows_of_zeros_have_no_direction():
    x = features("sphere", 10, 3)
    x[4] = 0
    with pytest.raises(
        InputError, match="row 4 of features, for ActiveFT, is all zeros and cannot be normalised"
    ):
        trained_picks(x, 3, seed=0)
