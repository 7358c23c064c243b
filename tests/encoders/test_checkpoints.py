"""Encoders from checkpoints of every released layout, and from those of other networks."""

import pytest
import torch
from helpers import STATE_DICTS, make_cld_checkpoint, shapes

from usl import InputError
from usl.checkpoints import weights_in
from usl.encoders.checkpoints import load_encoder, save_encoder
from usl.encoders.registry import new_network
from usl.models.resnet_cifar import CldEncoder, PretextEncoder, UsltEncoder, small_resnet


def random_weights(names):
    torch.manual_seed(1)
    return {k: 0.05 * torch.rand(s) - (0.02 if len(s) > 1 else 0) for k, s in names.items()}


def checkpoint(layout):
    if layout == "cld":
        weights = random_weights(STATE_DICTS["cld_resnet18_normlinear"])
        return {"model": {f"module.{k}": v for k, v in weights.items()}, "epoch": 200}
    if layout == "uslt":
        weights = random_weights(STATE_DICTS["uslt_cifar10"])
        return {"model": weights, "ema_model": None, "epoch": 3, "criterion_local": {}}
    weights = random_weights(shapes(PretextEncoder()))
    return {f"module.{k}": v for k, v in weights.items()} if layout == "scan-module" else weights


@pytest.mark.parametrize(
    ("layout", "kind", "dim", "length"),
    [
        ("cld", CldEncoder, 128, 1.0),
        ("scan", PretextEncoder, 128, 1.0),
        ("scan-module", PretextEncoder, 128, 1.0),
        ("uslt", UsltEncoder, 512, None),
    ],
)
def test_released_layouts_load(tmp_path, layout, kind, dim, length):
    content = checkpoint(layout)
    torch.save(content, tmp_path / "c.pth")
    encoder = load_encoder(tmp_path / "c.pth")
    assert type(encoder) is kind and not encoder.training
    given = weights_in(content)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, given[name].to(value.dtype)), name
    out = encoder(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, dim)
    if length:
        torch.testing.assert_close(out.norm(dim=1), torch.ones(2))


def test_backbone_dim_is_checked(tmp_path):
    make_cld_checkpoint(tmp_path / "c.pth")
    with pytest.raises(InputError, match="`backbone_dim` is 100, ResNet18 has 512"):
        load_encoder(tmp_path / "c.pth", backbone_dim=100)


def test_half_precision_weights_load(tmp_path):
    network = new_network("SmallResNet", 2, 10, cld=False)
    save_encoder(tmp_path / "e.pth", network, cld=False, half=True)
    encoder = load_encoder(tmp_path / "e.pth", "SmallResNet")
    for a, b in zip(encoder.parameters(), network.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.half().float())


@pytest.mark.parametrize(
    ("arch", "width", "depth", "message"),
    [
        ("AlexNet", 16, 10, "unknown `architecture` 'AlexNet'; did you mean torchvision/alexnet"),
        ("pixels", 16, 10, "`architecture` 'pixels' is not trained here; choose ResNet18 or Small"),
        ("SmallResNet", 0, 10, "`width` is 0"),
        ("SmallResNet", 16, 9, "`depth` is 9; choose 10, 18, 26"),
        ("SmallResNet", 16, 2, "`depth` is 2"),
    ],
)
def test_networks_that_are_none(arch, width, depth, message):
    with pytest.raises(InputError, match=message):
        new_network(arch, width, depth, cld=False)


def test_checkpoints_of_other_networks(tmp_path):
    make_cld_checkpoint(tmp_path / "c.pth")
    with pytest.raises(InputError, match="c.pth is of another network; missing: "):
        load_encoder(tmp_path / "c.pth", "resnet50")


def test_small_networks_in_the_form_of_imagenet(tmp_path):
    torch.manual_seed(0)
    small = PretextEncoder(**small_resnet(4, 18)).eval()
    weights = {f"backbone.{k}": v for k, v in small.state_dict().items()}
    weights |= {f"cluster_head.{i}.weight": torch.zeros(5, 128) for i in range(3)}
    torch.save({"model": weights, "ema_model": None}, tmp_path / "c.pth")
    encoder = load_encoder(tmp_path / "c.pth", "SmallResNet")
    assert type(encoder) is PretextEncoder
    images = torch.rand(3, 3, 32, 32)
    assert torch.equal(encoder(images), small(images))
    with pytest.raises(InputError, match="c.pth is of another network; missing"):
        load_encoder(tmp_path / "c.pth", "resnet50")
