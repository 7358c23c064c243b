"""The wide ResNet: names and shapes of the released one, and what it computes."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from usl import InputError
from usl.models.wideresnet import WideResNet

NAMES = json.loads((Path(__file__).parent / "state_dicts.json").read_text())["wrn_28_2"]


def test_names_and_shapes_are_those_of_the_released_network():
    found = {k: list(v.shape) for k, v in WideResNet(28, 2).state_dict().items()}
    assert found == NAMES and list(found) == list(NAMES)


def test_wrn_28_8_is_four_times_as_wide():
    found = {k: list(v.shape) for k, v in WideResNet(28, 8, 100).state_dict().items()}
    assert list(found) == list(NAMES)
    for name, shape in found.items():
        # What every width has in common: image channels, the first layer's 16, kernels, classes.
        fixed = {3: 3, 1: 1, 16: 16, 10: 100}
        assert shape == [fixed.get(size, 4 * size) for size in NAMES[name]], name


def by_hand(weights, x, blocks):
    """The forward pass in training mode, from the structure as published, without modules."""

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        x = x * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]
        return torch.where(x > 0, x, 0.1 * x)

    x = F.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for number in range(blocks):
            name = f"block{stage}.layer.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            into, out = weights[f"{name}.conv1.weight"].shape[1::-1]
            if into == out:
                shortcut, seen = x, norm(x, f"{name}.bn1")
            else:
                # Activated before the shortcut in the first stage, not at all in the others.
                seen = norm(x, f"{name}.bn1") if stage == 1 else x
                shortcut = F.conv2d(seen, weights[f"{name}.convShortcut.weight"], stride=stride)
            seen = F.conv2d(seen, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            seen = norm(seen, f"{name}.bn2")
            x = shortcut + F.conv2d(seen, weights[f"{name}.conv2.weight"], padding=1)
    x = norm(x, "bn1").mean((2, 3))
    return x @ weights["fc.weight"].T + weights["fc.bias"]


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_the_forward_pass_by_hand(depth, width):
    torch.manual_seed(depth)
    network = WideResNet(depth, width, 7).double()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn_like(p)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    expected = by_hand(dict(network.named_parameters()), x, (depth - 4) // 6)
    torch.testing.assert_close(network(x), expected)


def test_running_statistics_move_by_a_thousandth():
    network = WideResNet(10, 1)
    x = torch.randn(8, 3, 32, 32)
    network(x)
    seen = network.conv1(x)
    expected = 0.001 * seen.mean((0, 2, 3))
    torch.testing.assert_close(network.block1.layer[0].bn1.running_mean, expected)


def test_initial_weights():
    torch.manual_seed(0)
    network = WideResNet(28, 2)
    conv = network.block3.layer[1].conv1.weight
    assert conv.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    narrow = network.block3.layer[0].conv1.weight
    assert narrow.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert network.fc.weight.std().item() == pytest.approx((2 / (128 + 10)) ** 0.5, rel=0.1)
    assert not network.fc.bias.any()


@pytest.mark.parametrize(
    ("depth", "width", "message"),
    [
        (27, 2, "MODEL.DEPTH is 27; choose 10, 16, 28 or another 4 [+] 6 · blocks"),
        (4, 2, "MODEL.DEPTH is 4"),
        (-2, 2, "MODEL.DEPTH is -2"),
        (10, 0, "MODEL.WIDTH is 0; choose at least 1"),
    ],
)
def test_sizes_that_make_no_network(depth, width, message):
    with pytest.raises(InputError, match=message):
        WideResNet(depth, width)
