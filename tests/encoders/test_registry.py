"""What every encoder must do."""

import numpy as np
import pytest
import torch
from helpers import make_cld_checkpoint, tiny_images

from usl import InputError
from usl.encoders.checkpoints import new_network, save_encoder
from usl.encoders.registry import ENCODERS, Request, build_encoder
from usl.inference import extract
from usl.models.resnet_imagenet import MocoEncoder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint for each encoder that needs one."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_encoder(folder / "small.pth", new_network("SmallResNet", 2, 10, cld=False), cld=False)
    torch.save({"state_dict": MocoEncoder().state_dict()}, folder / "moco.pth")
    make_cld_checkpoint(folder / "cld.pth")
    names = {"SmallResNet": "small.pth", "ResNet18": "cld.pth", "resnet50": "moco.pth"}
    return {name: folder / file for name, file in names.items()}


def request_of(name, images, paths, **options):
    path = paths.get(name)
    checkpoint = (lambda: path) if path else None
    return Request(images=images, transform="CLD-cifar10", checkpoint=checkpoint, **options)


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_brings_all_that_is_needed_to_use_it(name, weights):
    images = tiny_images(5)
    encoder = build_encoder(name, request_of(name, images, weights))
    assert not encoder.network.training
    features = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=3)
    assert features.shape == (5, encoder.dim) and features.dtype == np.float32
    lengths = np.linalg.norm(features, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) is encoder.unit
    assert encoder.source["architecture"] == name
    assert all(isinstance(value, str) for value in encoder.source.values())
    assert f"{name}: {encoder.dim} dimensions" in str(encoder)
    # One image alone gives the same row.
    alone = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=1)
    np.testing.assert_allclose(alone, features, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_whatever_changes_features_changes_the_source(name, weights, tmp_path):
    images, others = tiny_images(5), tiny_images(5, seed=2)
    one = build_encoder(name, request_of(name, images, weights))
    if name not in weights:
        two = build_encoder(name, request_of(name, others, weights))
        assert one.source != two.source
        return
    state = torch.load(weights[name])
    changed = state.get("model", state.get("state_dict", state))
    first = next(key for key, value in changed.items() if value.is_floating_point())
    changed[first] += 0.1
    torch.save(state, tmp_path / "other.pth")
    two = build_encoder(name, request_of(name, images, {name: tmp_path / "other.pth"}))
    three = build_encoder(name, request_of(name, images, weights, output="backbone"))
    assert one.source != two.source and one.source != three.source


def test_what_cannot_be_built(weights):
    images = tiny_images(3)
    with pytest.raises(InputError, match="unknown `architecture` 'AlexNet'; choose one of ResNet"):
        build_encoder("AlexNet", request_of("AlexNet", images, weights))
    with pytest.raises(InputError, match="encoder ResNet18 needs a `checkpoint`; give one"):
        build_encoder("ResNet18", Request(images=images, transform="CLD-cifar10"))
    with pytest.raises(InputError, match="unknown `transform` 'x'"):
        build_encoder("ResNet18", Request(images=images, transform="x"))
    with pytest.raises(InputError, match="unknown `weights` 'best'; choose model or ema"):
        request = request_of("SmallResNet", images, weights, weights="best")
        build_encoder("SmallResNet", request)
