"""Data sets that are folders of files: order, pixels, and every file that is not right."""

import os
import shutil

import numpy as np
import pytest
import torch
from helpers import CPU, KINDS, SIDE, make_folder
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from usl import InputError
from usl.augment.folder_views import FolderViews
from usl.data.datasets import open_dataset
from usl.data.decode import read_image
from usl.encoders.preprocess import Preprocess


def standard_chain(side):
    short = round(side * 256 / 224)
    return T.Compose([T.Resize(short), T.CenterCrop(side), T.ToTensor()])


def shown(images, *, side=SIDE):
    """All images as networks see them."""
    seen = Preprocess(side, round(side * 256 / 224))
    return seen.normalize(seen.read(images, 0, len(images)))


def test_order_and_labels_are_those_of_torchvision(tmp_path):
    names = [
        "b/2.png", "b/10.png", "b/a.PNG", "B/x.png", "b/sub/z.png", "b/sub-1/y.png", "b/sub/a.png",
        "a b/ü,1.png", "b/notes.txt", "c/x.png",
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
    assert (ours.name, ours.split) == ("imagenet", "train")
    # b is there twice, and once as a link.
    assert ours.remarks == (f"{tmp_path / 'train'}: left out 2 .txt, 1 .md",)


@pytest.mark.parametrize("side", [SIDE, 96, 224])
def test_networks_see_what_torchvision_shows_them(image_folder, side):
    ours = open_dataset("imagenet100", image_folder, workers=3)
    theirs = ImageFolder(image_folder / "train", standard_chain(side))
    expected = torch.stack([image for image, _ in theirs])
    assert torch.equal(shown(ours, side=side), expected)


def test_the_test_split_is_val(image_folder, tmp_path):
    shutil.copytree(image_folder / "train", tmp_path / "val")
    test = open_dataset("imagenet", tmp_path, "test")
    assert (test.split, len(test), test.folder.name) == ("test", len(KINDS), "val")


def test_images_side_by_side_have_no_labels(tmp_path):
    flat = {f"{i}.png": ("RGB", (40, 40)) for i in (3, 20, 1)}
    folder_images = open_dataset("folder", make_folder(tmp_path, flat))
    assert folder_images.paths == ("1.png", "20.png", "3.png")
    assert folder_images.labels is None and folder_images.classes == ()
    assert shown(folder_images).shape == (3, 3, SIDE, SIDE)


def test_the_fingerprint_tells_changed_files(image_folder, tmp_path):
    def opened(where):
        return open_dataset("folder", where).fingerprint()

    first = opened(shutil.copytree(image_folder, tmp_path / "a"))
    assert opened(shutil.move(tmp_path / "a", tmp_path / "b")) == first
    path = tmp_path / "b" / "train" / "ant" / "grey.png"
    found = os.stat(path)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    touched = opened(tmp_path / "b")
    path.write_bytes(path.read_bytes() + b"0")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns + 1))
    longer = opened(tmp_path / "b")
    path.rename(path.with_name("gray.png"))
    assert len({first, touched, longer, opened(tmp_path / "b")}) == 4
    # The same files, read in another way, are other images.
    assert open_dataset("imagenet", tmp_path / "b").fingerprint() != opened(tmp_path / "b")


def broken(folder_images, tmp_path):
    """A copy of some images, and the path of one to damage."""
    some = {name: KINDS[name] for name in ("ant/wide.jpg", "ant/grey.png", "cat/tiny.webp")}
    return make_folder(tmp_path, some) / "train" / "ant" / "grey.png"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p.write_bytes(b""), "known format; replace it, or move it elsewhere"),
        (lambda p: p.write_text("<html>404</html>"), "it is in no known format"),
        (lambda p: p.write_bytes(p.read_bytes()[:-60]), "cannot read image .*grey.png: .*truncat"),
        (lambda p: p.unlink(), "cannot read image .*grey.png: No such file or directory"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:60] + bytes(200) + p.read_bytes()[260:]),
            "cannot read image .*grey.png: ",
        ),
    ],
)
def test_damaged_images(folder_images, tmp_path, damage, message, workers):
    path = broken(folder_images, tmp_path)
    some = open_dataset("folder", tmp_path, workers=workers)
    damage(path)
    for use in (
        lambda: shown(some),
        lambda: some.picture(0),
        lambda: FolderViews(some, Preprocess(SIDE, SIDE), device=CPU).standard(torch.arange(3)),
    ):
        with pytest.raises(InputError, match=message) as error:
            use()
        assert "\n" not in str(error.value)


def test_a_truncated_jpeg(tmp_path):
    broken(None, tmp_path)
    path = tmp_path / "train" / "ant" / "wide.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        InputError, match="wide.jpg: image file is truncated .*; replace it, or move"
    ):
        shown(open_dataset("folder", tmp_path))


def test_of_several_damaged_images_the_first_is_named(folder_images, tmp_path):
    shutil.copytree(folder_images.folder, tmp_path / "train")
    for name in ("bee/palette.png", "ant/wide.jpg", "cat/tiny.webp"):
        (tmp_path / "train" / name).write_bytes(b"")
    some = open_dataset("folder", tmp_path, workers=4)
    with pytest.raises(InputError, match=r"ant/wide.jpg"):
        shown(some)


def test_huge_images(tmp_path, monkeypatch):
    make_folder(tmp_path, {"a/big.png": ("L", (70, 70)), "b/thread.png": ("L", (2, 900))})
    some = open_dataset("folder", tmp_path, workers=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.raises(InputError, match="big.png: Image size .4900 pixels. exceeds limit of 4000"):
        Preprocess(224, 256).read(some, 0, 1)
    monkeypatch.undo()
    # 256 × 115200 would be a third of what PIL allows; four times as thin is too much.
    assert Preprocess(224, 256).read(some, 1, 2).shape == (1, 3, 224, 224)
    make_folder(tmp_path, {"b/thread.png": ("L", (1, 1800))})
    with pytest.raises(InputError, match="thread.png is too long for its width, 1 × 1800 pixels"):
        Preprocess(224, 256).read(some, 1, 2)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "imagenet is not in `root` .*: there is no folder .*/train; put the"),
        (["train/"], {}, r"train has no images \(.jpg, .*\); put some there"),
        (["train/x.txt"], {}, "train has no images"),
        (
            ["train/a/1.jpg", "train/b/"],
            {},
            r"folder .*/train/b has no images \(.*\); convert its files, or move the folder out of",
        ),
        (
            ["train/a/1.jpg", "train/b/x.HEIC", "train/b/y.heic", "train/b/z"],
            {},
            r"/train/b has no images \(.*\), only 2 .heic, 1 without an extension; convert",
        ),
        (["train/a/1.jpg", "train/2.jpg"], {}, "has images, such as 2.jpg, beside folders, .* a; "),
        (["train/a/1.jpg"], {"split": "test"}, "there is no folder .*/val"),
        (
            ["train/a/1.jpg", "train/b/1.jpg", "val/b/1.jpg"],
            {"split": "test"},
            "class folder a is in one of .*/val and .*/train only; give both the same",
        ),
        (["train/a/1.jpg"], {"workers": -1}, "`workers` is -1; choose at least 0"),
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


def test_files_that_go_away(folder_images, tmp_path):
    path = broken(folder_images, tmp_path)
    some, other = open_dataset("folder", tmp_path), open_dataset("folder", tmp_path)
    before = some.fingerprint()
    path.unlink()
    assert other.fingerprint() != before
    with pytest.raises(InputError, match="cannot read image .*grey.png: No such file"):
        shown(other)


def test_leftovers_are_no_images_and_no_classes(tmp_path):
    make_folder(tmp_path, {"a/1.png": ("L", (9, 9)), "b/2.png": ("L", (9, 9))})
    for name in (
        "__MACOSX/a/._1.png", "a/._1.png", "a/Thumbs.db", "a/.thumbnails/1.png", ".DS_Store",
        "desktop.ini", "@eaDir/1.png", ".git/x.png", "b/__MACOSX/9.png",
    ):  # fmt: skip
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")
    found = open_dataset("folder", tmp_path)
    assert found.classes == ("a", "b") and found.paths == ("a/1.png", "b/2.png")
    assert found.remarks == ()


def test_no_message_tells_anyone_to_remove_a_folder_of_pictures(tmp_path):
    make_folder(tmp_path, {"a/1.png": ("L", (9, 9))})
    photos = tmp_path / "train" / "holidays" / "0001.heic"
    photos.parent.mkdir()
    photos.write_bytes(b"a photo")
    with pytest.raises(InputError) as error:
        open_dataset("folder", tmp_path)
    assert "1 .heic" in str(error.value) and "remove" not in str(error.value)


def gradient(height=20, width=30):
    return (np.arange(height * width).reshape(height, width) * 255 // (height * width)).astype(int)


def test_pictures_are_turned_as_their_cameras_say(tmp_path):
    levels = gradient().astype(np.uint8)
    upright = Image.fromarray(levels)
    exif = Image.Exif()
    for orientation, turn in ((3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90)):
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.png"
        upright.transpose(turn).save(path, exif=exif)
        seen = np.asarray(read_image(path, as_seen=True))
        assert np.array_equal(seen, np.stack([levels] * 3, axis=2))
        raw = np.asarray(read_image(path))
        assert np.array_equal(raw[..., 0], np.asarray(upright.transpose(turn)))


@pytest.mark.parametrize(
    ("kind", "white", "suffix"),
    [(np.uint16, 65535, "png"), (np.int32, 65535, "tif"), (np.float32, 1.0, "tif"),
     (np.float32, 400.0, "tif"), (np.int32, 2**31 - 1, "tif")],
)  # fmt: skip
def test_deep_pictures_are_scaled_by_their_depth(tmp_path, kind, white, suffix):
    levels = gradient()
    levels[0, 0] = 255
    Image.fromarray((levels / 255 * white).astype(kind)).save(tmp_path / f"deep.{suffix}")
    seen = np.asarray(read_image(tmp_path / f"deep.{suffix}", as_seen=True)).astype(int)
    assert np.abs(seen - levels[..., None]).max() <= 1
    raw = np.asarray(read_image(tmp_path / f"deep.{suffix}"))
    assert white < 1000 or (raw == 255).mean() > 0.9


def test_an_infinite_level_does_not_blacken_the_others(tmp_path):
    levels = np.array([[0.5, 1.0], [np.inf, 2.0]], np.float32)
    Image.fromarray(levels).save(tmp_path / "deep.tiff")
    seen = np.asarray(read_image(tmp_path / "deep.tiff", as_seen=True))[..., 0]
    assert seen.tolist() == [[64, 128], [255, 255]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_on_white(tmp_path, mode):
    picture = Image.new("RGBA", (4, 4), (200, 40, 40, 255))
    picture.putpixel((1, 2), (0, 0, 0, 0))
    picture.putpixel((2, 1), (0, 0, 0, 51))
    path = tmp_path / "some.png"
    if mode == "P":
        indexed = Image.new("P", (4, 4), 0)
        indexed.putpalette([200, 40, 40, 0, 0, 0])
        indexed.putpixel((1, 2), 1)
        indexed.save(path, transparency=1)
    else:
        picture.convert(mode).save(path)
    seen = read_image(path, as_seen=True)
    assert seen.getpixel((1, 2)) == (255, 255, 255)
    if mode != "P":
        assert seen.getpixel((2, 1)) == (204, 204, 204)
    assert read_image(path).getpixel((1, 2)) == (0, 0, 0)


def test_which_data_set_reads_how(tmp_path):
    make_folder(tmp_path, {"a/1.png": ("L", (9, 9))})
    names = {"folder": True, "imagenet": False, "imagenet100": False}
    assert {n: open_dataset(n, tmp_path).as_seen for n in names} == names
