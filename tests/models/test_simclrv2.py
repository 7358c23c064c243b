"""SimCLRv2's networks: released names, outputs layer by layer, freezing, recomputation."""

import copy

import pytest
import torch
from helpers import STATE_DICTS, random_statistics, shapes
from oracles.networks import simclr_logits

from usl import InputError
from usl.models.simclrv2 import BLOCKS, FineTuned, SimclrEncoder, Size, size_in


@pytest.mark.parametrize("name", ["r50_1x_sk0", "r50_2x_sk1"])
def test_the_names_of_the_released_weights(name):
    with torch.device("meta"):
        encoder = SimclrEncoder(size_in(f"somewhere/{name}.pth"))
    released = STATE_DICTS[f"simclrv2_{name}"]
    # The classifier of 1000 classes is dropped.
    expected = {k: v for k, v in released["resnet"].items() if not k.startswith("fc.")}
    assert shapes(encoder.resnet) == expected
    assert shapes(encoder.head) == released["head"]


def test_sizes():
    assert size_in("r101_3x_sk1.pth") == Size(101, 3, True)
    assert str(size_in("mine/r26_0.25x_sk0-2.pth")) == "r26_0.25x_sk0"
    assert size_in("resnet50.pth") is None
    assert [sum(BLOCKS[depth]) * 3 + 2 for depth in BLOCKS] == list(BLOCKS)
    with pytest.raises(InputError, match="`size` r18_1x_sk0 has no such depth; choose one of 14,"):
        size_in("r18_1x_sk0")
    with pytest.raises(InputError, match="`size` r50_0x_sk0 has no such width; choose 1, 2, 3, or"):
        size_in("r50_0x_sk0")


def network_of(name, *, small=False, classes=5):
    torch.manual_seed(0)
    network = FineTuned(SimclrEncoder(size_in(name), small_images=small), classes)
    for module in random_statistics(network).modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.2, 0.2)
    return network.double()


KINDS = {"r26_0.125x_sk0": False, "r26_0.125x_sk1": False, "r14_0.25x_sk0": True,
         "r14_0.25x_sk1": True}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_outputs_are_those_of_the_structure_as_published(name, training):
    size, small = size_in(name), KINDS[name]
    network = network_of(name, small=small).train(training)
    x = torch.rand(3, 3, 32 if small else 76, 32 if small else 65, dtype=torch.float64)
    weights = {k: v.clone() for k, v in network.state_dict().items()}
    expected = simclr_logits(
        weights, x, BLOCKS[size.depth], selective=size.selective, small=small, training=training
    )
    torch.testing.assert_close(network(x), expected)


def test_fine_tuning_keeps_the_first_block_of_the_head():
    torch.manual_seed(0)
    encoder = SimclrEncoder(size_in("r14_0.125x_sk0"))
    network = FineTuned(copy.deepcopy(encoder), 7)
    kept = {k: v for k, v in encoder.head.state_dict().items() if int(k.split(".")[1]) < 3}
    assert {k: v.tolist() for k, v in network.head.state_dict().items()} == {
        k: v.tolist() for k, v in kept.items()
    }
    assert network.linear.weight.shape == (7, encoder.dim) and encoder.dim == 256
    features = encoder.eval()(torch.rand(2, 3, 40, 40))
    assert features.shape == (2, 128)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2))


def test_freezing_stops_gradients_at_the_backbones_output():
    network = network_of("r14_0.125x_sk1")
    network.freeze_backbone()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()(torch.rand(4, 3, 40, 40, dtype=torch.float64)).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) is name.startswith("model."), name
    for name, value in network.state_dict().items():
        # Running statistics move everywhere.
        assert torch.equal(value, before[name]) is not ("running" in name or "num_b" in name), name


@pytest.mark.parametrize("name", ["r26_0.125x_sk0", "r26_0.125x_sk1"])
def test_recomputing_changes_neither_gradients_nor_statistics(name):
    plain, frugal = network_of(name), network_of(name)
    frugal.model.recompute = True
    x = torch.rand(4, 3, 40, 40, dtype=torch.float64)
    for network in (plain, frugal):
        for _ in range(2):
            network.train()(x).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(plain.named_buffers(), frugal.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name, rtol=0, atol=0)


def test_recomputing_saves_memory():
    kept = {}
    for recompute in (False, True):
        network = network_of("r26_0.125x_sk0")
        network.model.recompute = recompute
        sizes = []

        def pack(x, sizes=sizes):
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            network.train()(torch.rand(2, 3, 40, 40, dtype=torch.float64))
        kept[recompute] = sum(sizes)
    assert kept[True] < kept[False] / 3
