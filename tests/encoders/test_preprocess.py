"""Normalisation: the published constants, as torchvision does it."""

import pytest
import torch
from helpers import make_cifar
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from usl import InputError
from usl.data.datasets import open_dataset
from usl.encoders.preprocess import NORMALIZATION, Preprocess, preprocess_named


@pytest.mark.parametrize("name", ["CLD-cifar10", "FixMatch-cifar100"])
def test_images_reach_networks_as_through_torchvision(tmp_path, name):
    data = open_dataset("cifar10", make_cifar(tmp_path))
    transform = T.Compose([T.ToTensor(), T.Normalize(*NORMALIZATION[name])])
    expected = torch.stack([transform(image) for image in data.images[3:9]])
    seen = preprocess_named(name, data, side=224)
    assert seen.side == 32
    assert torch.equal(seen.normalize(seen.read(data, 3, 9)), expected)


def test_normalisation_constants_are_the_published_ones():
    cifar10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    cifar100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = {
        "imagenet": imagenet, "imagenet100": imagenet,
        "CLD-cifar10": cifar10, "CLD-cifar100": cifar10, "SCAN-cifar10": cifar10,
        "SCAN-cifar100": cifar100, "FixMatch-cifar100": cifar100,
        "FixMatch-cifar10": (cifar10[0], (0.2471, 0.2435, 0.2616)),
    }  # fmt: skip
    assert {k: NORMALIZATION[k] for k in expected} == expected


def test_files_are_resized_and_cropped_as_torchvision_does_it(image_folder, folder_images):
    seen = preprocess_named("imagenet", folder_images, side=56)
    assert (seen.side, seen.resize) == (56, 64)
    transform = T.Compose(
        [T.Resize(64), T.CenterCrop(56), T.ToTensor(), T.Normalize(seen.mean, seen.std)]
    )
    expected = [transform(image) for image, _ in ImageFolder(image_folder / "train")]
    ours = seen.normalize(seen.read(folder_images, 0, len(folder_images)))
    assert torch.equal(ours, torch.stack(expected))


def test_native_images_stay_as_they_are():
    data = open_dataset("digits", "")
    seen = Preprocess(32, 32, native=True)
    images = seen.read(data, 0, 5)
    assert images.shape == (5, 1, 8, 8)
    assert seen.normalize(images) is images


def test_bad_preprocessing():
    data = open_dataset("digits", "")
    with pytest.raises(InputError, match="unknown `transform` 'x'; choose one of CLD-cifar10"):
        preprocess_named("x", data, side=32)
    with pytest.raises(InputError, match="`side` is 0; choose at least 1"):
        Preprocess(0, 0)
