"""ResNet-50 and its heads: names and shapes of the released checkpoints."""

import torch
from helpers import STATE_DICTS

from usl.models.resnet_imagenet import MocoEncoder, PretextImageNet


def test_names_and_shapes_are_the_released_ones():
    with torch.device("meta"):
        network, moco = PretextImageNet(), MocoEncoder()
    ours = {f"backbone.{k}": list(v.shape) for k, v in network.state_dict().items()}
    released = STATE_DICTS["uslt_imagenet"]
    assert ours == {k: v for k, v in released.items() if not k.startswith("cluster_head.")}
    ours = {k: list(v.shape) for k, v in moco.state_dict().items()}
    fc = {k: v for k, v in ours.items() if k.startswith("fc.")}
    assert fc == {
        k: v for k, v in STATE_DICTS["moco_eman_resnet50_fc"].items() if k.startswith("fc.")
    }
    prefix = "backbone.backbone."
    rest = {k.removeprefix(prefix): v for k, v in released.items() if k.startswith(prefix)}
    assert {k: v for k, v in ours.items() if k not in fc} == rest
