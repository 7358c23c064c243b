"""A classifier on a backbone, with and without the CLD head."""

import torch
from helpers import small_backbone

from usl.models.classifier import Classifier


def test_cld_logits_are_those_of_an_ordinary_layer_scaled_to_length_1():
    backbone = small_backbone()
    torch.manual_seed(3)
    classifier = Classifier(backbone, backbone.dim, 7, cld=True)
    torch.manual_seed(3)
    layer = torch.nn.Linear(backbone.dim, 7)
    assert torch.equal(classifier.linear.weight, layer.weight)
    assert torch.equal(classifier.linear.bias, layer.bias) and layer.bias.any()
    x = torch.randn(5, 3, 32, 32)
    plain = backbone(x) @ layer.weight.T + layer.bias
    logits = classifier(x)
    torch.testing.assert_close(logits, plain / plain.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits.norm(dim=1), torch.ones(5))


def test_plain_logits_are_a_linear_layer_on_the_backbone():
    backbone = small_backbone()
    classifier = Classifier(backbone, backbone.dim, 7)
    x = torch.randn(5, 3, 32, 32)
    expected = backbone(x) @ classifier.linear.weight.T + classifier.linear.bias
    torch.testing.assert_close(classifier(x), expected)
