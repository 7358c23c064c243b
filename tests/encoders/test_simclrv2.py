"""Checkpoints of SimCLRv2: read by their names, and what is wrong with others."""

import pytest
import torch
from helpers import random_statistics, tiny_images

from usl import InputError
from usl.encoders.checkpoints import save_encoder
from usl.encoders.registry import Request, build_backbone, build_encoder, new_network
from usl.encoders.simclrv2 import load_simclrv2


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A small checkpoint in the released layout, with a classifier."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("simclr") / "r14_0.125x_sk0.pth"
    network = random_statistics(new_network("SimCLRv2", 0, 0, cld=False, size="r14_0.125x_sk0"))
    save_encoder(path, network, cld=False)
    content = torch.load(path)
    assert set(content) == {"resnet", "head"}
    content["resnet"] |= {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
    torch.save(content, path)
    return path


def test_by_its_name_or_by_the_size_that_is_given(released, tmp_path):
    one = load_simclrv2(released)
    hidden = tmp_path / "encoder.pth"
    hidden.write_bytes(released.read_bytes())
    other = load_simclrv2(hidden, size="r14_0.125x_sk0")
    x = torch.rand(2, 3, 40, 40)
    assert torch.equal(one(x), other(x)) and not one.training
    # Of parallel training.
    content = torch.load(released)
    wrapped = {part: {f"module.{k}": v for k, v in content[part].items()} for part in content}
    torch.save(wrapped, tmp_path / released.name)
    assert torch.equal(load_simclrv2(tmp_path / released.name)(x), one(x))


def test_small_images_are_told_by_the_stem(tmp_path):
    network = new_network("SimCLRv2", 0, 0, cld=False, side=32, size="r14_0.125x_sk1")
    save_encoder(tmp_path / "r14_0.125x_sk1.pth", network, cld=False)
    loaded = load_simclrv2(tmp_path / "r14_0.125x_sk1.pth")
    assert len(loaded.resnet.net[0]) == 2
    assert loaded.resnet.net[0](torch.zeros(1, 3, 32, 32)).shape == (1, 8, 32, 32)


def test_as_an_encoder(released):
    images = tiny_images(3)
    request = Request(images=images, checkpoint=lambda: released)
    head = build_encoder("SimCLRv2", request)
    assert (head.dim, head.preprocess.interpolation) == (128, "bicubic")
    assert (head.preprocess.mean, head.preprocess.std) == ((0.0,) * 3, (1.0,) * 3)
    network, dim, source = build_backbone("SimCLRv2", request)
    assert dim == 256 and network(torch.rand(2, 3, 32, 32)).shape == (2, 256)
    assert source["checkpoint"] == released.name
    with pytest.raises(InputError, match="`transform` is imagenet, and SimCLRv2 brings its own"):
        build_encoder("SimCLRv2", Request(images=images, transform="imagenet"))
    with pytest.raises(InputError, match="encoder SimCLRv2 needs a `checkpoint`; give one, such"):
        build_encoder("SimCLRv2", Request(images=images))


def test_what_cannot_be_read(released, tmp_path):
    hidden = tmp_path / "mine.pth"
    hidden.write_bytes(released.read_bytes())
    with pytest.raises(InputError, match="mine.pth does not say its size; name it like r50_1x"):
        load_simclrv2(hidden)
    with pytest.raises(InputError, match="`size` is 'r50'; give one such as r50_1x_sk0"):
        load_simclrv2(hidden, size="r50")
    with pytest.raises(
        InputError, match=r"\(`size` r26_0.125x_sk0\) is of another network; missin"
    ):
        load_simclrv2(hidden, size="r26_0.125x_sk0")
    torch.save({"model": {}}, hidden)
    with pytest.raises(InputError, match="has no weights called resnet and head, as SimCLRv2's"):
        load_simclrv2(hidden, size="r14_0.125x_sk0")
