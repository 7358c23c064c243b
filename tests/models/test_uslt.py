"""The network of USL-T and its heads: outputs, released names, checkpoints."""

import math

import pytest
import torch
from helpers import STATE_DICTS
from torch import nn

from usl import InputError
from usl.models.resnet_cifar import CifarResNet
from usl.models.uslt import UsltNetwork, load_heads, new_heads


def test_heads():
    linear, cosine = new_heads(8, 6, cosine=False), new_heads(8, 6, cosine=True)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    network = UsltNetwork(nn.Identity(), linear)
    out = network(x)
    assert out.shape == (5, 3, 6)
    for h, head in enumerate(linear):
        torch.testing.assert_close(out[:, h], x @ head.weight.T + head.bias)
    for h, head in enumerate(cosine):
        lengths = x.norm(dim=1, keepdim=True) * head.weight.norm(dim=1)
        expected = 40 * (x @ head.weight.T) / lengths
        torch.testing.assert_close(UsltNetwork(nn.Identity(), cosine)(x)[:, h], expected)
    with pytest.raises(InputError, match="`clusters` is 1; choose at least 2"):
        new_heads(8, 1, cosine=False)


def test_names_and_shapes_are_the_released_ones():
    from usl.models.resnet_imagenet import PretextImageNet

    with torch.device("meta"):
        cifar = UsltNetwork(CifarResNet(), new_heads(512, 40, cosine=False))
        imagenet = UsltNetwork(PretextImageNet(), new_heads(128, 3000, cosine=True))
    for name, network in (("uslt_cifar10", cifar), ("uslt_imagenet", imagenet)):
        assert {k: list(v.shape) for k, v in network.state_dict().items()} == STATE_DICTS[name]


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("cosine", [False, True])
def test_released_heads_load(tmp_path, ema, prefix, cosine):
    heads = new_heads(8, 6, cosine=cosine)
    weights = {f"{prefix}cluster_head.{k}": v for k, v in heads.state_dict().items()}
    doubled = {k: 2 * v for k, v in weights.items()} if ema else None
    content = {"model": weights, "ema_model": doubled, "epoch": 200}
    torch.save(content, tmp_path / "c.pth")
    found = load_heads(tmp_path / "c.pth")
    assert type(found[1]) is type(heads[1])
    # The trained weights, as the original takes them, and not their average.
    assert torch.equal(found[1].weight, heads[1].weight)
    if ema:
        average = load_heads(tmp_path / "c.pth", weights="ema")
        assert torch.equal(average[1].weight, 2 * heads[1].weight)
    else:
        with pytest.raises(InputError, match="has no weight average; set `weights` model"):
            load_heads(tmp_path / "c.pth", weights="ema")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.clear(), "has no clustering heads; give one that usl-t_pretraining wrote"),
        (lambda w: w.update({"cluster_head.0.weight": torch.zeros(6)}), "has no clustering heads"),
        (lambda w: w.pop("cluster_head.1.bias"), "of another network; missing: cluster_head.1.b"),
        (
            lambda w: w.update({"cluster_head.2.weight": torch.zeros(7, 8)}),
            r"of another shape: cluster_head.2.weight \(7, 8\) instead of \(6, 8\)",
        ),
        (
            lambda w: w["cluster_head.0.bias"].fill_(math.nan),
            "not finite: cluster_head.0.bias",
        ),
    ],
)
def test_heads_that_do_not_fit_together(tmp_path, change, message):
    heads = new_heads(8, 6, cosine=False)
    weights = {f"cluster_head.{k}": v.clone() for k, v in heads.state_dict().items()}
    change(weights)
    torch.save({"model": weights}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=message):
        load_heads(tmp_path / "c.pth")
