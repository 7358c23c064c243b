"""Contrastive pretraining: killed and resumed, what it writes, collapse, processes."""

import math

import pytest
import torch
from helpers import CPU, Watched, in_processes, preprocess, tiny_images
from oracles import contrastive as oracle
from torch import nn
from toys.pretraining import outcome, pretrain

from usl import InputError
from usl.augment.moco import MocoTransform
from usl.augment.rng import Key, one_of
from usl.augment.views import Views
from usl.encoders.checkpoints import load_encoder, save_encoder
from usl.encoders.registry import new_network
from usl.models.resnet_cifar import CldEncoder, PretextEncoder
from usl.training.contrastive import groups
from usl.training.pretraining import (
    NEIGHBOR,
    Contrast,
    Embedding,
    PretrainingEvaluator,
    contrastive_step,
)


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


@pytest.mark.parametrize("cld", [False, True])
@pytest.mark.parametrize("paired", [False, True])
def test_a_step_equals_the_method_written_out(cld, paired):
    data = tiny_images(12, seed=0)
    views = Watched(Views(data, preprocess(data), device=CPU))
    neighbors = torch.stack([torch.arange(12), (torch.arange(12) + 5) % 12], dim=1)
    contrast = Contrast(temperature=0.3, cld=cld, groups=3, group_temperature=0.7, group_weight=0.4)
    torch.manual_seed(0)
    network = new_network("SmallResNet", 2, 10, cld=cld).eval()
    step = contrastive_step(
        views, MocoTransform(), contrast, seed=5, neighbors=neighbors if paired else None
    )
    images = torch.tensor([7, 0, 3, 11, 4, 9])
    loss, shown = step(network)(images, 2, 31)

    first, second = views.calls
    partners = one_of(neighbors, Key(images, 5, 2, NEIGHBOR)) if paired else images
    assert first == (MocoTransform, images.tolist(), images.tolist(), 2, 0)
    # The view is of the partner, by numbers of the image.
    assert second == (MocoTransform, partners.tolist(), images.tolist(), 2, 1)
    assert partners.tolist() != images.tolist() or not paired
    z, other = (network(given) for given in views.given)
    expected = oracle.nt_xent(*((z[:, 0], other[:, 0]) if cld else (z, other)), 0.3)
    if cld:
        grouped = groups(torch.stack([z[:, 1], other[:, 1]]), 3, 5 + 31)
        cross = oracle.cross_level(z[:, 1], other[:, 1], 0.7, *zip(*grouped, strict=True))
        assert float(shown["nt_xent"]) == pytest.approx(float(expected), rel=1e-5)
        assert float(shown["cross_level"]) == pytest.approx(float(cross), rel=1e-5)
        expected = expected + 0.4 * cross
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


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
