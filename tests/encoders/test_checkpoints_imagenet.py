"""ResNet-50 and its heads from checkpoints of the released layouts."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import resnet50

from usl.checkpoints import weights_in
from usl.encoders.checkpoints import Backbone, load_encoder
from usl.models.resnet_imagenet import MocoEncoder, PretextImageNet

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = PretextImageNet().eval()
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.uniform_(0.5, 1.5)
        # float16 holds them exactly, so checkpoints can be written at half the size.
        for value in network.state_dict().values():
            value.copy_(value.half())
    return network


@pytest.fixture(scope="module")
def expected(network):
    """Features of IMAGES, and what the head makes of them, from torchvision and the formula."""
    theirs = resnet50().eval()
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(network.backbone.state_dict())
    head = {k: v.float() for k, v in network.contrastive_head.state_dict().items()}
    with torch.no_grad():
        features = theirs(IMAGES)
    hidden = (features @ head["0.weight"].T + head["0.bias"]).clamp_min(0)
    out = hidden @ head["2.weight"].T + head["2.bias"]
    return features, out / (out * out).sum(dim=1, keepdim=True).sqrt()


def parts(network):
    """float16 weights of the backbone and of the head."""
    both = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    return (
        {k.removeprefix("backbone."): v for k, v in both.items() if k.startswith("backbone.")},
        {k.removeprefix("contrastive_head."): v for k, v in both.items() if "head" in k},
    )


def layout(name, network):
    backbone, head = parts(network)
    pretext = {f"backbone.{k}": v for k, v in backbone.items()}
    pretext |= {f"contrastive_head.{k}": v for k, v in head.items()}
    if name == "pretext":
        return pretext
    if name == "uslt":
        weights = {f"module.backbone.{k}": v for k, v in pretext.items()}
        weights |= {f"module.cluster_head.{i}.weight": torch.zeros(30, 128) for i in range(3)}
        return {"model": weights, "ema_model": None, "epoch": 3}
    query = backbone | {f"fc.{k}": v for k, v in head.items()}
    weights = {f"module.encoder_q.{k}": v for k, v in query.items()}
    if name == "moco-whole":
        key = {f"module.encoder_k.{k}": torch.zeros(1) for k in query}
        weights |= key | {"module.queue": torch.zeros(128, 9), "module.queue_ptr": torch.zeros(1)}
    return {"state_dict": weights, "epoch": 800, "arch": "resnet50"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [("pretext", PretextImageNet), ("uslt", PretextImageNet), ("moco-whole", MocoEncoder)],
)
def test_layouts_load_and_give_torchvisions_features(tmp_path, network, expected, name, kind):
    features, head = expected
    torch.save(layout(name, network), tmp_path / "c.pth.tar")
    encoder = load_encoder(tmp_path / "c.pth.tar", "resnet50", backbone_dim=2048)
    assert type(encoder) is kind and encoder.dim == 2048 and not encoder.training
    with torch.no_grad():
        torch.testing.assert_close(encoder(IMAGES), head, atol=1e-5, rtol=1e-5)
        before = Backbone(encoder)(IMAGES)
    torch.testing.assert_close(before, F.normalize(features), atol=1e-5, rtol=1e-5)


def test_the_released_moco_file_has_the_query_encoder_only(network):
    alone, whole = (weights_in(layout(name, network)) for name in ("moco", "moco-whole"))
    assert list(alone) == list(whole) and "fc.0.weight" in alone
    assert all(torch.equal(alone[k], whole[k]) for k in alone)
