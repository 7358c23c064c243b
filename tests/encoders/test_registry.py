"""What every encoder must do."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import make_cld_checkpoint, random_statistics, tiny_images

from usl import InputError
from usl.encoders.checkpoints import save_encoder
from usl.encoders.registry import (
    CLIP,
    ENCODERS,
    Request,
    build_encoder,
    new_network,
    saved_as_it_comes,
)
from usl.inference import extract
from usl.models.resnet_imagenet import MocoEncoder

# Of each kind one; networks of CLIP have tests of their own, for their size.
NAMES = [
    *(name for name in ENCODERS if name not in CLIP),
    "timm/test_resnet",
    "timm/test_vit.r160_in1k",
    "torchvision/shufflenet_v2_x0_5",
]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint for each encoder that needs one."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    save_encoder(folder / "small.pth", new_network("SmallResNet", 2, 10, cld=False), cld=False)
    torch.save({"state_dict": MocoEncoder().state_dict()}, folder / "moco.pth")
    make_cld_checkpoint(folder / "cld.pth")
    names = {"SmallResNet": "small.pth", "ResNet18": "cld.pth", "resnet50": "moco.pth"}
    names["SimCLRv2"] = "r14_0.125x_sk1.pth"
    simclr = random_statistics(new_network("SimCLRv2", 0, 0, cld=False, size="r14_0.125x_sk1"))
    save_encoder(folder / names["SimCLRv2"], simclr, cld=False)
    for name in NAMES[-3:]:
        library, _, inner = name.partition("/")
        build = timm.create_model if library == "timm" else torchvision.models.get_model
        names[name] = name.replace("/", "-") + ".pth"
        torch.save(random_statistics(build(inner)).state_dict(), folder / names[name])
    return {name: folder / file for name, file in names.items()}


def request_of(name, images, paths, **options):
    path = paths.get(name)
    checkpoint = (lambda: path) if path else None
    transform = "" if "/" in name or name == "SimCLRv2" else "CLD-cifar10"
    return Request(images=images, transform=transform, checkpoint=checkpoint, **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_brings_all_that_is_needed_to_use_it(name, weights):
    images = tiny_images(5)
    encoder = build_encoder(name, request_of(name, images, weights))
    assert not encoder.network.training
    features = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=3)
    assert features.shape == (5, encoder.dim) and features.dtype == np.float32
    # Libraries make features of any length, which are scaled once they are saved.
    lengths = np.linalg.norm(features, axis=1)
    assert np.allclose(lengths, 1, atol=1e-5) is not encoder.scale
    assert encoder.scale is ("/" in name) is saved_as_it_comes(name)
    assert encoder.source["architecture"] == name
    assert all(isinstance(value, str) for value in encoder.source.values())
    assert f"{name}: {encoder.dim} dimensions" in str(encoder)
    # One image alone gives the same row.
    alone = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=1)
    np.testing.assert_allclose(alone, features, atol=1e-5 * max(1, float(lengths.max())))
    # In training it has features of the length that stages use.
    images = encoder.preprocess.normalize(encoder.preprocess.read(images, 0, 2))
    with torch.no_grad():
        inside = encoder.for_training()(images).numpy()
    np.testing.assert_allclose(inside, features[:2] / lengths[:2, None], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_changes_features_changes_the_source(name, weights, tmp_path):
    images, others = tiny_images(5), tiny_images(5, seed=2)
    one = build_encoder(name, request_of(name, images, weights))
    if name not in weights:
        two = build_encoder(name, request_of(name, others, weights))
        assert one.source != two.source
        return
    state = torch.load(weights[name])
    changed = next((state[k] for k in ("model", "state_dict", "head") if k in state), state)
    first = next(key for key, value in changed.items() if value.is_floating_point())
    changed[first] += 0.1
    # SimCLRv2's sizes are in its names.
    other = tmp_path / weights[name].name
    torch.save(state, other)
    two = build_encoder(name, request_of(name, images, {name: other}))
    three = build_encoder(name, request_of(name, images, weights, output="backbone"))
    assert one.source != two.source and one.source != three.source


def test_what_cannot_be_built(weights):
    images = tiny_images(3)
    with pytest.raises(InputError, match="unknown `architecture` 'AlexNet'; did you mean torchv"):
        build_encoder("AlexNet", request_of("AlexNet", images, weights))
    with pytest.raises(InputError, match="encoder ResNet18 needs a `checkpoint`; give one"):
        build_encoder("ResNet18", Request(images=images, transform="CLD-cifar10"))
    with pytest.raises(InputError, match="unknown `transform` 'x'"):
        build_encoder("ResNet18", Request(images=images, transform="x"))
    with pytest.raises(InputError, match="unknown `weights` 'best'; choose model or ema"):
        request = request_of("SmallResNet", images, weights, weights="best")
        build_encoder("SmallResNet", request)
