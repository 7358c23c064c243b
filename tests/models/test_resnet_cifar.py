"""The ResNets for small images: names of the released ones, the CLD head by hand."""

import torch
from helpers import STATE_DICTS, shapes

from usl.models.resnet_cifar import CifarResNet, CldEncoder, UsltEncoder


def test_parameter_names_are_the_released_ones():
    cld = STATE_DICTS["cld_resnet18_normlinear"]
    assert shapes(CldEncoder()) == {k: v for k, v in cld.items() if not k.startswith("groupDis")}
    assert shapes(CifarResNet()) == STATE_DICTS["resnet_cifar18"]
    uslt = {
        k: v for k, v in STATE_DICTS["uslt_cifar10"].items() if not k.startswith("cluster_head")
    }
    assert shapes(UsltEncoder()) == uslt


def test_cld_head_by_hand():
    encoder = CldEncoder().eval()
    x = torch.randn(3, 3, 32, 32)
    w = encoder.linear.weight
    hidden = CifarResNet.forward(encoder, x)
    logits = hidden @ (w / (w * w).sum(0).sqrt())
    expected = logits / (logits * logits).sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(encoder(x), expected)
