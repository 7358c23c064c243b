"""Contrastive losses against slow oracles."""

from itertools import pairwise

import pytest
import torch
from helpers import unit
from oracles import contrastive as oracle
from torch import nn

from usl.training.contrastive import cross_level, groups, nt_xent


def equal_with_gradients(fast, slow, inputs):
    values, gradients = [], []
    for f in (fast, slow):
        values.append(f())
        gradients.append(torch.autograd.grad(values[-1], inputs))
    torch.testing.assert_close(values[0], values[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_oracle(temperature):
    z, other = unit(7, 5, 0), unit(7, 5, 1)
    equal_with_gradients(
        lambda: nt_xent(z, other, temperature=temperature),
        lambda: oracle.nt_xent(z, other, temperature=temperature),
        [z, other],
    )


def test_cross_level_equals_the_oracle():
    z, other = unit(20, 6, 2), unit(20, 6, 3)
    labels, centroids = groups(torch.stack([z, other]), 4, seed=0)
    grouped = labels, centroids.double()
    equal_with_gradients(
        lambda: cross_level(z, other, grouped, temperature=0.2),
        lambda: oracle.cross_level(z, other, 0.2, *zip(*grouped, strict=True)),
        [z, other],
    )


def test_groups_are_k_means_of_each_view_with_centroids_of_length_1():
    both = torch.stack([unit(30, 4, 5), unit(30, 4, 6)])
    labels, centroids = groups(both, 5, seed=1)
    assert labels.shape == (2, 30) and centroids.shape == (2, 5, 4) and not centroids.requires_grad
    for z, mine, centres in zip(both.detach(), labels, centroids, strict=True):
        start = torch.randperm(30, generator=torch.Generator().manual_seed(1))[:5]
        slow, means = z[start], None
        for _ in range(40):
            nearest = torch.cdist(z, slow).argmin(dim=1)
            means = [z[nearest == c].mean(0) if (nearest == c).any() else slow[c] for c in range(5)]
            slow = torch.stack(means)
        assert torch.equal(mine, nearest)
        expected = nn.functional.normalize(slow).float()
        torch.testing.assert_close(centres, expected, atol=1e-5, rtol=1e-5)


def test_a_group_that_empties_keeps_its_centroid():
    # Three of the five first centroids are the same embedding.
    z = nn.functional.normalize(torch.eye(3)[[0, 0, 0, 1, 2]])[None]
    labels, centroids = groups(z, 5, seed=0)
    assert torch.isfinite(centroids).all()
    torch.testing.assert_close(centroids.norm(dim=2), torch.ones(1, 5))
    assert (z[0] * centroids[0][labels[0]]).sum(dim=1).min() > 0.99


def test_each_loss_falls_under_plain_gradient_steps():
    def fall(loss, *inputs):
        values = []
        for _ in range(30):
            value = loss(*(nn.functional.normalize(x) for x in inputs))
            values.append(value.item())
            for x, g in zip(inputs, torch.autograd.grad(value, inputs), strict=True):
                x.data -= 0.5 * g
        return values

    z, other = unit(16, 8, 0), unit(16, 8, 1)
    values = fall(lambda a, b: nt_xent(a, b, temperature=0.5), z, other)
    assert all(b < a for a, b in pairwise(values))
    z, other = unit(16, 8, 2), unit(16, 8, 3)
    labels, centroids = groups(torch.stack([z, other]), 4, 0)
    grouped = labels, centroids.double()
    values = fall(lambda a, b: cross_level(a, b, grouped, temperature=0.5), z, other)
    assert all(b < a for a, b in pairwise(values))
