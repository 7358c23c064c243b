"""The wide ResNet: names and shapes of the released one, and what it computes."""

import pytest
import torch
from helpers import STATE_DICTS
from oracles.networks import wide_resnet_logits

from usl import InputError
from usl.models.wideresnet import WideResNet

WIDE = STATE_DICTS["wrn_28_2"]


def test_names_and_shapes_are_those_of_the_released_network():
    found = {k: list(v.shape) for k, v in WideResNet(28, 2).state_dict().items()}
    assert found == WIDE and list(found) == list(WIDE)


def test_wrn_28_8_is_four_times_as_wide():
    found = {k: list(v.shape) for k, v in WideResNet(28, 8, 100).state_dict().items()}
    assert list(found) == list(WIDE)
    for name, shape in found.items():
        # What every width has in common: image channels, the first layer's 16, kernels, classes.
        fixed = {3: 3, 1: 1, 16: 16, 10: 100}
        assert shape == [fixed.get(size, 4 * size) for size in WIDE[name]], name


@pytest.mark.parametrize(("depth", "width"), [(10, 1), (16, 2)])
def test_the_forward_pass_by_hand(depth, width):
    torch.manual_seed(depth)
    network = WideResNet(depth, width, 7).double()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.1 * torch.randn_like(p)
    x = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    expected = wide_resnet_logits(dict(network.named_parameters()), x, (depth - 4) // 6)
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
        (27, 2, "`depth` is 27; choose 10, 16, 28 or another 4 [+] 6 · blocks"),
        (4, 2, "`depth` is 4"),
        (-2, 2, "`depth` is -2"),
        (10, 0, "`width` is 0; choose at least 1"),
    ],
)
def test_sizes_that_make_no_network(depth, width, message):
    with pytest.raises(InputError, match=message):
        WideResNet(depth, width)
