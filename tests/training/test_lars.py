"""LARS: against its definition step by step, and timm's where both agree."""

import copy

import numpy as np
import pytest
import torch
from timm.optim import Lars as TimmLars
from torch import nn

from usl import InputError
from usl.training.lars import Lars


def network_of(seed=0):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
    return network.double()


def gradients(network, step):
    torch.manual_seed(100 + step)
    for number, parameter in enumerate(network.parameters()):
        parameter.grad = torch.randn_like(parameter) * 10.0**-number


@pytest.mark.parametrize("decay", [0.0, 1e-4])
def test_equals_its_definition(decay):
    network = network_of()
    weights = [w.detach().numpy().copy() for w in network.parameters()]
    speeds = [np.zeros_like(w) for w in weights]
    optimizer = Lars(network.parameters(), lr=1.0, weight_decay=decay)
    for step in range(5):
        gradients(network, step)
        lr = 0.5 / (step + 1)
        for row, parameter in enumerate(network.parameters()):
            w, g = weights[row], parameter.grad.numpy()
            d = g + decay * w
            if w.ndim > 1:
                d = d * 0.001 * np.sqrt((w * w).sum()) / np.sqrt((d * d).sum())
            speeds[row] = 0.9 * speeds[row] + d
            weights[row] = w - lr * speeds[row]
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    for parameter, expected in zip(network.parameters(), weights, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_equals_timms_without_decay():
    ours, theirs = network_of(), network_of()
    theirs_matrices = [p for p in theirs.parameters() if p.ndim > 1]
    # Theirs scales biases too.
    optimizers = (
        Lars(ours.parameters(), lr=0.3),
        TimmLars(theirs_matrices, lr=0.3, momentum=0.9, trust_coeff=0.001, always_adapt=True),
        torch.optim.SGD([p for p in theirs.parameters() if p.ndim == 1], lr=0.3, momentum=0.9),
    )
    for step in range(5):
        for network in (ours, theirs):
            gradients(network, step)
        for optimizer in optimizers:
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_a_weight_or_gradient_of_zero_is_not_scaled():
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Lars([weight], lr=0.5, momentum=0.0)
    weight.grad = torch.full((2, 2), 4.0)
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), -2.0))
    weight.grad = torch.zeros(2, 2)
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), -2.0))
    # Without a gradient it stays, as a frozen one does.
    weight.grad = None
    optimizer.step()
    assert torch.equal(weight, torch.full((2, 2), -2.0))


def test_it_goes_on_from_what_it_saved():
    network, other = network_of(), network_of()
    one, two = (Lars(n.parameters(), lr=0.1, weight_decay=1e-3) for n in (network, other))
    for step in range(4):
        gradients(network, step)
        one.step()
        if step == 1:
            other.load_state_dict(network.state_dict())
            two.load_state_dict(copy.deepcopy(one.state_dict()))
        if step >= 2:
            gradients(other, step)
            two.step()
    assert set(one.state_dict()["state"][0]) == {"mu"}
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_losses_that_were_scaled_make_the_same_steps():
    network, other = network_of().float(), network_of().float()
    plain, scaled = (Lars(n.parameters(), lr=0.1, weight_decay=1e-3) for n in (network, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(step))
        network(x).pow(2).mean().backward()
        scaler.scale(other(x).pow(2).mean()).backward()
        plain.step()
        scaler.step(scaled)
        scaler.update()
        for a, b in zip(network.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        plain.zero_grad()
        scaled.zero_grad()
    # A gradient that has become infinite moves nothing, and halves the scale.
    before = [w.clone() for w in other.parameters()]
    (scaler.scale(other(x).pow(2).mean()) * torch.inf).backward()
    scaler.step(scaled)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["momentum", "weight_decay"])
def test_what_is_impossible(name):
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match=f"`{name}` is {value}; choose 0 or more"):
            Lars([nn.Parameter(torch.zeros(1))], lr=0.1, **{name: value})
