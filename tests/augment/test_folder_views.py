"""Views of images in files: against PIL, with any cache, and what they refuse."""

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from helpers import CPU, SIDE, make_folder
from oracles import moco_pil as pil
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F

from usl import InputError
from usl.augment.folder_views import FolderViews
from usl.augment.moco import MocoTransform
from usl.augment.randaugment import RandAugmentTransform, ScanTransform, WeakTransform
from usl.augment.rng import Key
from usl.data import folder
from usl.data.datasets import open_dataset
from usl.encoders.preprocess import NORMALIZATION, Preprocess

MEAN, STD = NORMALIZATION["imagenet"]
SEEN = Preprocess(SIDE, round(SIDE * 256 / 224), mean=MEAN, std=STD)


def pictures(image_folder):
    short = round(SIDE * 256 / 224)
    return [F.resize(image, short) for image, _ in ImageFolder(image_folder / "train")]


def sampled(transform, resized, *key):
    """The parameters of images whose pictures are these, one by one."""
    return [
        transform.sample(Key(torch.tensor([image]), *key), (picture.height, picture.width))
        for image, picture in resized
    ]


def plain(x):
    """Undo the normalisation."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (SEEN.mean, SEEN.std))
    return x * std + mean


def test_the_standard_view_is_what_networks_see(folder_images):
    views = FolderViews(folder_images, SEEN, device=CPU)
    images = torch.tensor([4, 0, 10, 4])
    expected = SEEN.normalize(SEEN.read(folder_images, 0, len(folder_images)))[images]
    assert torch.equal(views.standard(images), expected)


def test_crops_are_pils(image_folder, folder_images):
    transform = MocoTransform(size=SIDE, jitter=0, grey=0, blur=0)
    images = torch.arange(len(folder_images))
    views = FolderViews(folder_images, SEEN, device=CPU)
    ours = views(transform, images, Key(images, 7, 3, 1))
    resized = pictures(image_folder)
    for row, params in enumerate(sampled(transform, enumerate(resized), 7, 3, 1)):
        box = params.box[0].tolist()
        theirs = F.resized_crop(resized[row], *box, [SIDE, SIDE])
        theirs = F.to_tensor(F.hflip(theirs) if params.flip[0] else theirs)
        assert torch.equal(ours[row], SEEN.normalize(theirs[None])[0])


def test_views_are_pils_but_for_the_roundings_of_its_colours(image_folder, folder_images):
    # As in test_moco.py: PIL cuts off after each operation, and most after hue.
    transform = MocoTransform(size=SIDE, hue=0.0)
    images = torch.arange(len(folder_images))
    views = FolderViews(folder_images, SEEN, device=CPU)
    resized = pictures(image_folder)
    for epoch in range(4):
        ours = plain(views(transform, images, Key(images, 2, epoch)))
        each = zip(resized, sampled(transform, enumerate(resized), 2, epoch), strict=True)
        theirs = torch.cat([pil.apply(np.asarray(p)[None], d, SIDE) for p, d in each])
        assert (ours - theirs).abs().max() <= 8 / 255
        assert (ours - theirs).abs().mean() <= 1.5 / 255


def test_neighbours_are_seen_with_the_draws_of_the_image(image_folder, folder_images):
    transform = MocoTransform(size=SIDE, jitter=0, grey=0, blur=0)
    images, others = torch.tensor([1, 2]), torch.tensor([9, 9])
    views = FolderViews(folder_images, SEEN, device=CPU)
    ours = views(transform, others, Key(images, 0, view=2))
    picture = pictures(image_folder)[9]
    for row, params in enumerate(sampled(transform, [(1, picture), (2, picture)], 0, 0, 2)):
        theirs = F.resized_crop(picture, *params.box[0].tolist(), [SIDE, SIDE])
        theirs = F.to_tensor(F.hflip(theirs) if params.flip[0] else theirs)
        assert torch.equal(ours[row], SEEN.normalize(theirs[None])[0])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache_bytes", [0, 10_000, 25_000, 1 << 30])
def test_views_are_the_same_with_any_cache_and_workers(folder_images, cache_bytes, workers):
    transform = MocoTransform(size=SIDE)
    some = dataclasses.replace(folder_images, workers=workers)
    views = FolderViews(some, SEEN, device=CPU, cache_bytes=cache_bytes)
    fresh = FolderViews(folder_images, SEEN, device=CPU)
    for epoch in range(3):
        for batch in torch.arange(len(folder_images)).flip(0).split(4):
            assert torch.equal(views.standard(batch), fresh.standard(batch))
            for view in (0, 1):
                rows = (batch + view * 3) % len(folder_images)
                a, b = (v(transform, rows, Key(batch, 1, epoch, view)) for v in (views, fresh))
                assert torch.equal(a, b)
            kept = sum(picture.nbytes for picture in views.kept.values())
            assert kept + views.free == cache_bytes and views.free >= 0
    assert (len(views.kept) == len(folder_images)) == (cache_bytes == 1 << 30)
    assert bool(views.kept) == (cache_bytes > 0)


@pytest.mark.parametrize(("cache_bytes", "decoded"), [(1 << 30, [11, 0]), (0, [11, 11])])
def test_how_often_an_image_is_decoded(folder_images, monkeypatch, cache_bytes, decoded):
    seen = []
    real = folder.read_image
    monkeypatch.setattr(
        folder, "read_image", lambda path, **options: seen.append(path) or real(path, **options)
    )
    views = FolderViews(folder_images, SEEN, device=CPU, cache_bytes=cache_bytes)
    for epoch, expected in enumerate(decoded):
        seen.clear()
        for batch in torch.arange(len(folder_images)).split(4):
            views.standard(batch)
            views(MocoTransform(size=SIDE), batch, Key(batch, 1, epoch))
        assert len(seen) == len(set(seen)) == expected


def test_bad_views(folder_images):
    with pytest.raises(InputError, match="`cache_gb` is -1; choose at least 0"):
        FolderViews(folder_images, SEEN, device=CPU, cache_bytes=-(1 << 30))


def test_nothing_warns(folder_images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = FolderViews(folder_images, SEEN, device=CPU)
        rows = torch.arange(len(folder_images))
        views.standard(rows)
        views(MocoTransform(size=SIDE), rows, Key(rows, 1))


def test_crops_of_the_whole_image(image_folder, folder_images):
    transform = MocoTransform(size=SIDE, jitter=0, grey=0, blur=0)
    images = torch.arange(len(folder_images))
    views = FolderViews(folder_images, SEEN, device=CPU, whole=True)
    ours = views(transform, images, Key(images, 7))
    whole = [image for image, _ in ImageFolder(image_folder / "train")]
    for row, params in enumerate(sampled(transform, enumerate(whole), 7)):
        theirs = F.resized_crop(whole[row], *params.box[0].tolist(), [SIDE, SIDE])
        theirs = F.to_tensor(F.hflip(theirs) if params.flip[0] else theirs)
        assert torch.equal(ours[row], SEEN.normalize(theirs[None])[0])
    # What an encoder sees is the same either way.
    resized = FolderViews(folder_images, SEEN, device=CPU)
    assert torch.equal(views.standard(images), resized.standard(images))


@pytest.mark.parametrize(
    "transform",
    [WeakTransform(padding=4), RandAugmentTransform(), ScanTransform(fill=0.5), MocoTransform()],
    ids=lambda transform: type(transform).__name__,
)
def test_what_is_prepared_is_what_would_have_been_made(folder_images, transform):
    images, cache = torch.tensor([3, 0, 9]), 60000
    plain, ahead = (FolderViews(folder_images, SEEN, device=CPU, cache_bytes=cache) for _ in "ab")
    keys = [Key(images, 5, epoch) for epoch in range(4)]
    for number, key in enumerate(keys):
        for coming in keys[number : number + 2]:
            ahead.prepare(transform, images, coming)
        assert torch.equal(ahead(transform, images, key), plain(transform, images, key))
    assert not ahead._coming


def test_transforms_of_fixed_size_change_the_standard_view(folder_images):
    images = torch.tensor([2, 7])
    views = FolderViews(folder_images, SEEN, device=CPU)
    key = Key(images, 5)
    transform = WeakTransform(padding=4)
    standard = plain(views.standard(images))
    expected = transform.apply(standard, transform.sample(key, (SIDE, SIDE)))
    torch.testing.assert_close(plain(views(transform, images, key)), expected)


def test_an_error_of_what_is_prepared_is_said_when_it_is_asked_for(tmp_path):
    broken = make_folder(tmp_path)
    (broken / "train" / "ant" / "grey.png").write_bytes(b"no image")
    images = torch.arange(2)
    views = FolderViews(open_dataset("imagenet", broken), SEEN, device=CPU)
    views.prepare(MocoTransform(), images, Key(images, 1))
    with pytest.raises(InputError, match="cannot read image .*grey.png: it is in no known format"):
        views(MocoTransform(), images, Key(images, 1))
