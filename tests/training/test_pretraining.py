"""Contrastive pretraining: killed and resumed, what it writes, collapse, processes."""

import math

import pytest
import torch
from helpers import CPU, in_processes, preprocess, tiny_images
from torch import nn
from toys.pretraining import outcome, pretrain

from usl import InputError
from usl.augment.moco import MocoTransform
from usl.augment.views import Views
from usl.encoders.checkpoints import load_encoder, save_encoder
from usl.models.resnet_cifar import CldEncoder, PretextEncoder
from usl.training.pretraining import Contrast, Embedding, PretrainingEvaluator


@pytest.mark.slow
@pytest.mark.parametrize("cld", [False, True])
def test_pretraining_killed_and_resumed(tmp_path, cld):
    whole = pretrain(None, cld=cld)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, cld=cld, die_at=4)
    rest = pretrain(tmp_path, cld=cld)
    for (name, a), b in zip(
        whole.network.state_dict().items(), rest.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    same = [c for c in whole.metrics if c != "images_per_second"]
    assert whole.metrics[same].equals(rest.metrics[same])
    assert {"alignment", "uniformity", "effective_rank", "knn_accuracy/backbone"} <= set(same)


@pytest.mark.parametrize("cld", [False, True])
def test_what_pretraining_writes_is_what_selection_reads(tmp_path, cld):
    network = pretrain(None, cld=cld, epochs=1).network
    save_encoder(tmp_path / "encoder.pth", network, cld=cld)
    encoder = load_encoder(tmp_path / "encoder.pth", "SmallResNet", backbone_dim=64)
    assert type(encoder) is (CldEncoder if cld else PretextEncoder)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(encoder(x), Embedding(network)(x))
    with pytest.raises(InputError, match="of another network"):
        load_encoder(tmp_path / "encoder.pth", "ResNet18")
    with pytest.raises(InputError, match="`architecture` 'banana' has no checkpoints"):
        load_encoder(tmp_path / "encoder.pth", "banana")
    before = load_encoder(tmp_path / "encoder.pth", "SmallResNet", output="backbone")
    torch.testing.assert_close(before(x), nn.functional.normalize(network.features(x)))
    with pytest.raises(InputError, match="unknown `output` 'tail'; choose head or backbone"):
        load_encoder(tmp_path / "encoder.pth", "SmallResNet", output="tail")


def test_bfloat16_trains():
    assert math.isfinite(pretrain(None, precision="bfloat16").metrics["loss"].iloc[-1])


def test_collapse_is_recognised_and_said(caplog):
    class Point(nn.Module):
        dim = 8

        def forward(self, x):
            return nn.functional.normalize(torch.ones(len(x), 8))

    data = tiny_images(48, seed=0)
    views = Views(data, preprocess(data), device=CPU)
    look = PretrainingEvaluator(data, None, views, MocoTransform(), seed=1, batch_size=16)
    found = look(Point())
    assert "the features have collapsed" in caplog.text
    assert "knn_accuracy/head" not in found and found["effective_rank"] == pytest.approx(1)


def test_impossible_contrasts():
    with pytest.raises(InputError, match="`groups` is 32; choose 2 to 16, the batch"):
        Contrast(cld=True).check(16)
    with pytest.raises(InputError, match="`temperature` is 0.0 and `group_temperature`"):
        Contrast(temperature=0.0).check(16)


@pytest.mark.parametrize("cld", [False, True])
@pytest.mark.slow
def test_two_processes_nearly_equal_one(tmp_path, cld):
    # Not exactly: sums over the batch are added in another order (float32), in batch norm and in
    # the gradients, and later steps enlarge that. Images, views, negatives and groups are the same.
    results = [in_processes(tmp_path / "worker.py", count, outcome, cld) for count in (1, 2)]
    (one_loss, one), (two_loss, two) = results
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-3, abs=1e-3), name
