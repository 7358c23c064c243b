"""Pixels as features, by hand."""

import numpy as np
import pytest
import torch
from helpers import SIDE, make_folder

from usl import InputError
from usl.data.datasets import open_dataset
from usl.encoders.pixels import mean_image
from usl.encoders.preprocess import Preprocess
from usl.encoders.registry import Request, build_encoder
from usl.inference import extract


def embed(images, batch_size):
    encoder = build_encoder("pixels", Request(images=images, side=SIDE))
    found = extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=batch_size)
    assert encoder.dim == found.shape[1] and not encoder.scale
    return found


def test_pixels_by_hand():
    train = open_dataset("digits", "", "train")
    raw = train.images[..., 0].reshape(1437, 64) / 16.0
    raw = raw - raw.mean(0)
    expected = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(train, 100), expected, atol=2e-7)


def test_broken_files_are_left_out_of_the_mean(tmp_path):
    names = {f"{i}.png": ("RGB", (40, 40)) for i in range(4)}
    images = open_dataset("folder", make_folder(tmp_path, names))
    whole = mean_image(images, Preprocess(SIDE, SIDE))
    make_folder(tmp_path, names | {"9.png": ("RGB", (40, 40))})
    (images.folder / "9.png").write_bytes(b"")
    broken = open_dataset("folder", tmp_path)
    assert torch.equal(mean_image(broken, Preprocess(SIDE, SIDE), skip_unreadable=True), whole)
    with pytest.raises(InputError, match="9.png: it is in no known format"):
        mean_image(broken, Preprocess(SIDE, SIDE))


def test_pixels_of_a_folder(folder_images):
    seen = Preprocess(SIDE, round(SIDE * 256 / 224))
    x = seen.normalize(seen.read(folder_images, 0, len(folder_images))).double().numpy()
    x = (x - x.mean(axis=0)).reshape(len(x), -1)
    expected = x / np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(embed(folder_images, 3), expected, atol=1e-6)
