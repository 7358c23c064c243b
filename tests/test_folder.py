"""Data sets that are folders of files: order, pixels, views, and every file that is not right."""

import dataclasses
import os
import shutil
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as F
from usl.data.augment import Draws, MocoChain
from usl.data.folder_views import FolderViews
from usl.data.transforms import NORMALIZATION, normalize
from usl.features import SHARD_BATCHES, ahead, extract
from usl.models.encoders import pixels_encoder

from usl import InputError
from usl.data import augment_pil, folder
from usl.data.datasets import ImageDataset, open_dataset
from usl.models.resnet_cifar import PretextEncoder, small_resnet
from usl.report.pictures import image_uri
from usl.report.selection import SeedResult, write_selection_report

CPU = torch.device("cpu")
SIDE = 32  # so images are resized to 37 on their shorter side
# File, mode and size (width, height) of images of every kind that people have.
KINDS = {
    "ant/wide.jpg": ("RGB", (80, 50)),
    "ant/tall.JPEG": ("RGB", (41, 90)),
    "ant/grey.png": ("L", (50, 60)),
    "bee/alpha.png": ("RGBA", (37, 37)),
    "bee/palette.png": ("P", (64, 48)),
    "bee/ink.jpg": ("CMYK", (45, 45)),
    "bee/line.bmp": ("1", (60, 40)),
    "cat/grey-alpha.png": ("LA", (39, 38)),
    "cat/tiny.webp": ("RGB", (5, 7)),
    "cat/deep.tif": ("I;16", (40, 40)),
    "cat/long.png": ("RGB", (300, 20)),
}


def picture(mode, size, seed):
    random = np.random.RandomState(seed)
    noise = random.randint(0, 256, (9, 9, 3)).astype(np.uint8)
    smooth = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16))
    if mode == "RGBA":
        smooth.putalpha(smooth.convert("L"))
    return smooth.convert(mode)


def make_folder(root, kinds=KINDS, split="train"):
    for seed, (name, (mode, size)) in enumerate(kinds.items()):
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A palette whose every colour has a transparency of its own, as the web's have.
        options = {"transparency": bytes(range(256))} if mode == "P" else {}
        picture(mode, size, seed).save(path, **options)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def data(root):
    return open_dataset("folder", root, side=SIDE, workers=2)


def standard_chain(side):
    short = round(side * 256 / 224)
    return T.Compose([T.Resize(short), T.CenterCrop(side), T.ToTensor()])


def test_order_and_labels_are_those_of_torchvision(tmp_path):
    names = [
        "b/2.png", "b/10.png", "b/a.PNG", "B/x.png", "b/sub/z.png", "b/sub-1/y.png", "b/sub/a.png",
        "a b/ü,1.png", "b/notes.txt", "c/.hidden.png",
    ]  # fmt: skip
    for name in names:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "train" / "link").symlink_to(tmp_path / "train" / "b")
    (tmp_path / "train" / "readme.md").touch()
    ours = open_dataset("imagenet", tmp_path)
    theirs = ImageFolder(tmp_path / "train")
    paths = [os.path.relpath(path, tmp_path / "train") for path, _ in theirs.samples]
    assert list(ours.paths) == paths and ours.labels.tolist() == theirs.targets
    assert list(ours.classes) == theirs.classes and ours.labels.dtype == np.int64
    assert (ours.name, ours.split, ours.side, ours.short) == ("imagenet", "train", 224, 256)


@pytest.mark.parametrize("side", [SIDE, 96, 224])
def test_networks_see_what_torchvision_shows_them(root, side):
    ours = open_dataset("imagenet100", root, side=side, workers=3)
    theirs = ImageFolder(root / "train", standard_chain(side))
    expected = torch.stack([image for image, _ in theirs])
    assert torch.equal(ours.for_networks(0, len(ours)), expected)
    assert torch.equal(ours.native(2, 5), expected[2:5])


def test_the_test_split_is_val(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "val")
    test = open_dataset("imagenet", tmp_path, "test")
    assert (test.split, len(test), test.folder.name) == ("test", len(KINDS), "val")


def test_images_side_by_side_have_no_labels(tmp_path):
    flat = {f"{i}.png": ("RGB", (40, 40)) for i in (3, 20, 1)}
    data = open_dataset("folder", make_folder(tmp_path, flat), side=SIDE)
    assert data.paths == ("1.png", "20.png", "3.png")
    assert data.labels is None and data.classes == ()
    assert data.for_networks(0, 3).shape == (3, 3, SIDE, SIDE)


def test_the_fingerprint_tells_changed_files(root, tmp_path):
    def opened(where, **options):
        return open_dataset("folder", where, **options).fingerprint()

    first = opened(shutil.copytree(root, tmp_path / "a"))
    assert opened(shutil.move(tmp_path / "a", tmp_path / "b")) == first
    assert opened(tmp_path / "b", side=64) != first
    path = tmp_path / "b" / "train" / "ant" / "grey.png"
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    touched = opened(tmp_path / "b")
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    longer = opened(tmp_path / "b")
    path.rename(path.with_name("gray.png"))
    assert len({first, touched, longer, opened(tmp_path / "b")}) == 4


# Files that are not right.


def broken(data, tmp_path):
    """A copy of some images, and the path of one to damage."""
    some = {name: KINDS[name] for name in ("ant/wide.jpg", "ant/grey.png", "cat/tiny.webp")}
    return make_folder(tmp_path, some) / "train" / "ant" / "grey.png"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "grey.png: it is in no known format; replace or remove it"),
        (lambda p: p.write_text("<html>404</html>"), "it is in no known format"),
        (lambda p: p.write_bytes(p.read_bytes()[:-60]), "cannot read image .*grey.png: .*truncat"),
        (lambda p: p.unlink(), "cannot read image .*grey.png: No such file or directory"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:60] + bytes(200) + p.read_bytes()[260:]),
            "cannot read image .*grey.png: ",
        ),
    ],
)
def test_damaged_images(data, tmp_path, damage, message, workers):
    path = broken(data, tmp_path)
    some = open_dataset("folder", tmp_path, side=SIDE, workers=workers)
    damage(path)
    for use in (
        lambda: some.for_networks(0, 3),
        lambda: some.picture(0),
        lambda: FolderViews(some, "imagenet", seed=0, device=CPU).standard(torch.arange(3)),
    ):
        with pytest.raises(InputError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


def test_a_truncated_jpeg(tmp_path):
    broken(None, tmp_path)
    path = tmp_path / "train" / "ant" / "wide.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="wide.jpg: image file is truncated .*; replace or remove"):
        open_dataset("folder", tmp_path, side=SIDE).for_networks(0, 3)


def test_of_several_damaged_images_the_first_is_named(data, tmp_path):
    shutil.copytree(data.folder, tmp_path / "train")
    for name in ("bee/palette.png", "ant/wide.jpg", "cat/tiny.webp"):
        (tmp_path / "train" / name).write_bytes(b"")
    some = open_dataset("folder", tmp_path, side=SIDE, workers=4)
    with pytest.raises(InputError, match=r"ant/wide.jpg"):
        some.for_networks(0, len(some))


def test_huge_images(tmp_path, monkeypatch):
    make_folder(tmp_path, {"a/big.png": ("L", (70, 70)), "b/thread.png": ("L", (2, 900))})
    some = open_dataset("folder", tmp_path, workers=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match="big.png: Image size .4900 pixels. exceeds limit of 4000"):
        some.for_networks(0, 1)
    monkeypatch.undo()
    # 256 × 115200 would be a third of what PIL allows; four times as thin is too much.
    assert some.for_networks(1, 2).shape == (1, 3, 224, 224)
    make_folder(tmp_path, {"b/thread.png": ("L", (1, 1800))})
    with pytest.raises(InputError, match="thread.png is too long for its width, 1 × 1800 pixels"):
        some.for_networks(1, 2)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "imagenet is not in DATASET.ROOT_DIR .*: there is no folder .*/train; put the"),
        (["train/"], {}, r"train has no images \(.jpg, .*\); put some there"),
        (["train/x.txt"], {}, "train has no images"),
        (["train/a/1.jpg", "train/b/"], {}, "class folder .*/train/b has no images; remove it"),
        (["train/a/1.jpg", "train/b/x.txt"], {}, "class folder .*/train/b has no images"),
        (["train/a/1.jpg", "train/2.jpg"], {}, "has images, such as 2.jpg, beside folders, .* a; "),
        (["train/a/1.jpg"], {"split": "test"}, "there is no folder .*/val"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg"],
            {"split": "test"},
            "class folder a is in one of .*/val and .*/train only; give both the same",
        ),
        (["train/a/1.jpg"], {"side": 0}, "images of 0 pixels a side"),
        (["train/a/1.jpg"], {"workers": -1}, "DATALOADER.WORKERS is -1; choose at least 0"),
    ],
)
def test_bad_folders(tmp_path, files, options, message):
    for name in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.touch()
    with pytest.raises(InputError, match=message) as error:
        open_dataset("imagenet", tmp_path, **options)
    assert "\n" not in str(error.value)


def test_folders_that_hold_themselves_and_names_that_are_no_text(tmp_path):
    make_folder(tmp_path, {"a/1.png": ("L", (9, 9))})
    link = tmp_path / "train" / "a" / "again"
    for target in (".", ".."):
        link.symlink_to(target)
        with pytest.raises(InputError, match="a/again leads back to a folder above it; remove"):
            open_dataset("folder", tmp_path)
        link.unlink()
    odd = os.fsencode(tmp_path / "train" / "a") + b"/\xff.png"
    with open(odd, "wb"):
        pass
    with pytest.raises(InputError, match=r"'a/\\udcff.png' in .* is not UTF-8; rename it"):
        open_dataset("folder", tmp_path)


def test_files_that_go_away(data, tmp_path):
    path = broken(data, tmp_path)
    some = open_dataset("folder", tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="cannot read .*grey.png: No such file"):
        some.fingerprint()


# Views.


def pictures(root):
    short = round(SIDE * 256 / 224)
    return [F.resize(image, short) for image, _ in ImageFolder(root / "train")]


def drawn(chain, images, resized, **numbers):
    """The draws of images whose pictures are these, one by one."""
    return [
        chain.draw(torch.tensor([i]), p.height, p.width, **numbers)
        for i, p in zip(images, resized, strict=True)
    ]


def plain(x):
    """Undo the normalisation."""
    mean, std = (torch.tensor(v)[:, None, None] for v in NORMALIZATION["imagenet"])
    return x * std + mean


def test_sizes_may_differ_between_the_images_of_a_draw():
    heights, widths = torch.randint(1, 400, (2, 500))
    chain = MocoChain(size=SIDE)
    together = chain.draw(torch.arange(500), heights, widths, seed=1, epoch=2, view=0)
    for row in range(500):
        h, w = int(heights[row]), int(widths[row])
        one = chain.draw(torch.tensor([row]), h, w, seed=1, epoch=2, view=0)
        for field in dataclasses.fields(Draws):
            assert torch.equal(getattr(together, field.name)[row], getattr(one, field.name)[0]), (
                field.name
            )
        top, left, height, width = one.box[0].tolist()
        assert height >= 1 and width >= 1 and top + height <= h and left + width <= w


def test_the_standard_view_is_what_networks_see(data):
    views = FolderViews(data, "imagenet", seed=0, device=CPU)
    images = torch.tensor([4, 0, 10, 4])
    expected = normalize(data.for_networks(0, len(data)), "imagenet")[images]
    assert torch.equal(views.standard(images), expected)


def test_crops_are_pils(root, data):
    chain = MocoChain(size=SIDE, jitter=0, grey=0, blur=0)
    images = torch.arange(len(data))
    ours = FolderViews(data, "imagenet", seed=7, device=CPU)(chain, images, 3, 1)
    resized = pictures(root)
    for row, draws in enumerate(drawn(chain, images, resized, seed=7, epoch=3, view=1)):
        box = draws.box[0].tolist()
        theirs = F.resized_crop(resized[row], *box, [SIDE, SIDE])
        theirs = F.to_tensor(F.hflip(theirs) if draws.flip[0] else theirs)
        assert torch.equal(ours[row], normalize(theirs[None], "imagenet")[0])


def test_views_are_pils_but_for_the_roundings_of_its_colours(root, data):
    # As in test_augment.py: PIL cuts off after each operation, and most after hue.
    chain = MocoChain(size=SIDE, hue=0.0)
    images = torch.arange(len(data))
    views = FolderViews(data, "imagenet", seed=2, device=CPU)
    resized = pictures(root)
    for epoch in range(4):
        ours = plain(views(chain, images, epoch, 0))
        each = zip(resized, drawn(chain, images, resized, seed=2, epoch=epoch, view=0), strict=True)
        theirs = torch.cat([augment_pil.apply(np.asarray(p)[None], d, SIDE) for p, d in each])
        assert (ours - theirs).abs().max() <= 8 / 255
        assert (ours - theirs).abs().mean() <= 1.5 / 255


def test_neighbours_are_seen_with_the_draws_of_the_image(root, data):
    chain = MocoChain(size=SIDE, jitter=0, grey=0, blur=0)
    images, others = torch.tensor([1, 2]), torch.tensor([9, 9])
    ours = FolderViews(data, "imagenet", seed=0, device=CPU)(chain, images, 0, 2, of=others)
    resized = [pictures(root)[9]] * 2
    for row, draws in enumerate(drawn(chain, images, resized, seed=0, epoch=0, view=2)):
        theirs = F.resized_crop(resized[row], *draws.box[0].tolist(), [SIDE, SIDE])
        theirs = F.to_tensor(F.hflip(theirs) if draws.flip[0] else theirs)
        assert torch.equal(ours[row], normalize(theirs[None], "imagenet")[0])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cache_bytes", [0, 10_000, 25_000, 1 << 30])
def test_views_are_the_same_with_any_cache_and_workers(data, cache_bytes, workers):
    chain = MocoChain(size=SIDE)
    some = dataclasses.replace(data, workers=workers)
    views = FolderViews(some, "imagenet", seed=1, device=CPU, cache_bytes=cache_bytes)
    fresh = FolderViews(data, "imagenet", seed=1, device=CPU)
    for epoch in range(3):
        for batch in torch.arange(len(data)).flip(0).split(4):
            assert torch.equal(views.standard(batch), fresh.standard(batch))
            for view in (0, 1):
                of = (batch + view * 3) % len(data)
                a, b = (v(chain, batch, epoch, view, of=of) for v in (views, fresh))
                assert torch.equal(a, b)
            kept = sum(picture.nbytes for picture in views.kept.values())
            assert kept + views.free == cache_bytes and views.free >= 0
    assert (len(views.kept) == len(data)) == (cache_bytes == 1 << 30)
    assert bool(views.kept) == (cache_bytes > 0)


@pytest.mark.parametrize(("cache_bytes", "decoded"), [(1 << 30, [11, 0]), (0, [11, 11])])
def test_how_often_an_image_is_decoded(data, monkeypatch, cache_bytes, decoded):
    seen = []
    real = folder.read_image
    monkeypatch.setattr(folder, "read_image", lambda path: seen.append(path) or real(path))
    views = FolderViews(data, "imagenet", seed=1, device=CPU, cache_bytes=cache_bytes)
    for epoch, expected in enumerate(decoded):
        seen.clear()
        for batch in torch.arange(len(data)).split(4):
            views.standard(batch)
            views(MocoChain(size=SIDE), batch, epoch, 0)
        assert len(seen) == len(set(seen)) == expected


def test_bad_views(data):
    with pytest.raises(InputError, match="unknown DATASET.TRANSFORM_NAME 'x'"):
        FolderViews(data, "x", seed=0, device=CPU)
    with pytest.raises(InputError, match="a cache of -1 bytes"):
        FolderViews(data, "imagenet", seed=0, device=CPU, cache_bytes=-1)


# Features and reports.


def test_features_of_a_folder(data, tmp_path):
    torch.manual_seed(0)
    encoder = PretextEncoder(**small_resnet(4, 10)).eval()
    options = {"transform": "imagenet", "batch_size": 4}
    found = extract(encoder, data, **options)
    with torch.no_grad():
        expected = encoder(normalize(data.for_networks(0, len(data)), "imagenet"))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    memory = ImageDataset("x", "train", np.zeros((3, 32, 32, 3), np.uint8), None, ())
    assert extract(encoder, memory, **options).shape == (3, 128)


def test_extraction_of_a_folder_goes_on_where_it_stopped(data, tmp_path):
    count = 2 * SHARD_BATCHES + 3
    names = {f"{i:03}.png": ("RGB", (40, 36)) for i in range(count)}
    some = open_dataset("folder", make_folder(tmp_path, names), side=SIDE, workers=2)
    encoder = PretextEncoder(**small_resnet(2, 10)).eval()
    options = {"transform": "imagenet", "batch_size": 1}
    whole = extract(encoder, some, **options)
    path = some.folder / some.paths[SHARD_BATCHES + 4]
    good = path.read_bytes()
    path.write_bytes(b"")
    threads = threading.active_count()
    shards = {"shards": tmp_path / "shards", "source": {"a": 1}}
    with pytest.raises(InputError, match="012.png: it is in no known format"):
        extract(encoder, some, **options, **shards)
    assert threading.active_count() == threads
    path.write_bytes(good)
    first = some.folder / some.paths[0]
    first.unlink()  # its shard is there already
    assert np.array_equal(extract(encoder, some, **options, **shards), whole)


def test_one_block_is_loaded_ahead():
    loaded, seen = [], []

    def load(item):
        loaded.append(item)
        if item == 4:
            raise InputError("four")
        return item * 10

    assert list(ahead(load, [])) == []
    blocks = ahead(load, range(9))
    with pytest.raises(InputError, match="four"):
        for block in blocks:
            seen.append(block)
    assert seen == [0, 10, 20, 30] and loaded[:5] == [0, 1, 2, 3, 4] and len(loaded) <= 6
    loaded.clear()
    blocks = ahead(load, range(4))
    assert next(blocks) == 0
    blocks.close()
    assert len(loaded) <= 2


def test_pixels_of_a_folder(data):
    found = extract(pixels_encoder(data), data, transform="", batch_size=3)
    x = data.for_networks(0, len(data)).double().numpy()
    x = (x - x.mean(axis=0)).reshape(len(x), -1)
    np.testing.assert_allclose(found, x / np.linalg.norm(x, axis=1, keepdims=True), atol=1e-6)


def test_pictures_are_small(data, tmp_path):
    make_folder(tmp_path, {"a/big.jpg": ("RGB", (1200, 900)), "a/small.png": ("L", (20, 30))})
    big, small = (open_dataset("folder", tmp_path).picture(i) for i in (0, 1))
    assert big.shape == (96, 128, 3) and big.dtype == np.uint8
    with Image.open(tmp_path / "train" / "a" / "big.jpg") as image:
        theirs = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(big - theirs).mean() < 4
    assert np.array_equal(small, np.asarray(picture("L", (20, 30), 1).convert("RGB")))
    assert image_uri(big).startswith("data:image/jpeg") and len(image_uri(big)) < 15_000
    assert image_uri(small).startswith("data:image/png")
    results = [SeedResult(1, np.array([0, 1, 9]))]
    path = tmp_path / "r.html"
    write_selection_report(path, results, title="t", facts={}, command="", timings={}, dataset=data)
    text = path.read_text()
    assert text.count("<li><img src=") == 3 and "<br>" in text and "cat" in text


def test_pictures_of_sets_in_memory():
    digits = open_dataset("digits", "")
    assert np.array_equal(digits.picture(7), digits.images[7].astype(int) * 255 // 16)
    image = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert np.array_equal(ImageDataset("x", "train", image, None, ()).picture(0), image[0])


def test_nothing_warns(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        views = FolderViews(data, "imagenet", seed=1, device=CPU)
        views.standard(torch.arange(len(data)))
        views(MocoChain(size=SIDE), torch.arange(len(data)), 0, 0)
