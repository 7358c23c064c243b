"""People's own images: every place that they may lie in, and every one that is none."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
from helpers import KINDS, make_folder, picture
from PIL import Image

from usl import InputError
from usl.data.archive import LocalFile
from usl.data.archives import open_archive
from usl.data.datasets import open_dataset
from usl.data.decode import register_heif

SOME = {name: KINDS[name] for name in ("ant/wide.jpg", "ant/grey.png", "bee/alpha.png")} | {
    "top.png": ("RGB", (30, 20)),
    "ant/deeper/still.webp": ("RGB", (25, 25)),
}
ORDER = ("ant/deeper/still.webp", "ant/grey.png", "ant/wide.jpg", "bee/alpha.png", "top.png")


@pytest.fixture
def place(tmp_path):
    return make_folder(tmp_path, SOME) / "train"


def packed(place, path):
    """The files of a folder, and some that are no images, in an archive."""
    extra = {"notes.txt": b"x", "__MACOSX/top.png": b"x", ".hidden.png": b"x"}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in SOME:
                archive.write(place / name, name)
            for name, content in extra.items():
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            for name in SOME:
                archive.add(place / name, name)
            for name, content in extra.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def pixels(images):
    return [images.each([row], np.asarray)[0] for row in range(len(images))]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "txt", "csv", "parquet"])
def test_the_same_images_in_the_same_order_from_every_place(place, kind):
    root, found = place, open_dataset("images", place)
    names = pd.DataFrame({"n": range(6), "file": [*reversed(ORDER), "top.png"]})
    if kind in ("zip", "tar"):
        root = packed(place, place.parent / f"x.{kind}")
    elif kind == "txt":
        root = place / "list.txt"
        absolute = str(place.absolute() / "top.png")
        root.write_text("\n".join([*reversed(ORDER), "", absolute]) + "\n", encoding="utf-8-sig")
    elif kind == "csv":
        names.to_csv(root := place / "list.csv")
    elif kind == "parquet":
        pytest.importorskip("pyarrow")
        names.to_parquet(root := place / "list.parquet")
    images = open_dataset("images", root, workers=3)
    assert images.paths == found.paths == ORDER
    assert images.labels is None and images.classes == ()
    for mine, theirs in zip(pixels(images), pixels(found), strict=True):
        assert np.array_equal(mine, theirs)
    assert images.picture(0).shape == (25, 25, 3)
    assert images.content(4) == (place / "top.png").read_bytes()
    assert len(images.fingerprint()) == 64
    if kind in ("zip", "tar"):
        assert images.remarks == (f"{root}: left out 1 .txt",)
        before = images.fingerprint()
        os.utime(root, ns=(0, 0))
        assert open_dataset("images", root).fingerprint() != before


def test_first_pictures_of_animations_and_modern_formats(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture("RGB", (30, 30), 0).save(tmp_path / "b.avif")
    if register_heif():
        picture("RGB", (40, 30), 0).save(tmp_path / "c.HEIC", "HEIF")
    images = open_dataset("images", tmp_path)
    shapes = [pixel.shape for pixel in pixels(images)]
    assert shapes[:2] == [(20, 20, 3), (30, 30, 3)]
    assert pixels(images)[0][0, 0, 0] > 250 and pixels(images)[0][0, 0, 1:].max() < 5
    assert len(images) == (3 if register_heif() else 2)


def test_heic_is_counted_where_it_cannot_be_read(place, monkeypatch):
    (place / "x.heic").write_bytes(b"x")
    monkeypatch.setattr("usl.data.images.register_heif", lambda: False)
    images = open_dataset("images", place)
    assert images.paths == ORDER
    assert images.remarks[0].endswith("left out 1 .heic")
    assert "pip install pillow-heif" in images.remarks[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "list.txt",
            "../x.png",
            "list.txt names '../x.png', outside its folder; move the",
        ),
        ("list.txt", "/etc/x.png", "names '/etc/x.png', outside its folder"),
        ("list.txt", "notes.md", "list.txt has no images .*, only 1 .md; give another place"),
        ("list.txt", b"\xff\xfe\x00", "cannot read .*list.txt: .*; give a list of paths"),
        (
            "list.csv",
            "name\nx",
            "list.csv has no column path, file, filename, .*; name its",
        ),
        ("list.csv", "", "cannot read .*list.csv: No columns"),
        ("x.zip", b"nothing", "cannot read .*x.zip: .*; give a .zip, an uncompressed .tar"),
        ("x.tar", b"nothing", "cannot read .*x.tar: .*; give a .zip, an uncompressed .tar"),
        ("x.rar", b"nothing", "`root` .*x.rar is no folder, archive or list; give a folder, .zip"),
    ],
)
def test_places_that_are_none(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError, match=message):
        open_dataset("images", path)


def test_other_bad_input(tmp_path, place):
    with pytest.raises(InputError, match="there is no folder or file `root` .*nowhere; give"):
        open_dataset("images", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no images .*; give another place"):
        open_dataset("images", tmp_path / "empty")
    with pytest.raises(InputError, match="images without labels have no test images"):
        open_dataset("images", place, "test")
    with pytest.raises(InputError, match="`workers` is -1"):
        open_dataset("images", place, workers=-1)
    with pytest.raises(InputError, match="`dataset` images takes no `subset`"):
        open_dataset("images", place, subset=place)


def test_damaged_members_of_archives(place):
    path = packed(place, place.parent / "x.zip")
    raw = bytearray(path.read_bytes())
    start = raw.index(b"top.png") + 40
    raw[start : start + 20] = bytes(20)
    path.write_bytes(raw)
    images = open_dataset("images", path)
    with pytest.raises(InputError, match="cannot read .*x.zip/top.png: .*; replace it"):
        images.each([4], np.asarray)
    assert images.each([4], np.asarray, instead=lambda row, error: row) == [4]


def test_archives_with_a_password_or_giants(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", b"x" * 50)
    monkeypatch.setattr("usl.data.archive.LARGEST", 40)
    with pytest.raises(InputError, match="x.zip/a.png: it has 50 bytes; leave it out"):
        open_archive(LocalFile(tmp_path / "x.zip")).read("a.png")
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    raw[raw.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(InputError, match="x.zip is protected by a password; unpack it yourself"):
        open_archive(LocalFile(tmp_path / "x.zip"))


def test_of_many_kinds_of_files_the_commonest_are_counted(tmp_path):
    for number in range(12):
        for copy in range(12 - number):
            (tmp_path / f"{copy}.x{number:02}").touch()
    message = r"only 12 \.x00, 11 \.x01, .*, 5 \.x07 and 10 of other kinds; give another place"
    with pytest.raises(InputError, match=message):
        open_dataset("images", tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("name", ["/evil.png", "../evil.png", "a/../../evil.png"])
def test_archives_whose_files_lead_out(place, kind, name):
    path = place.parent / f"x.{kind}"
    content = (place / "top.png").read_bytes()
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
    else:
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(InputError, match=f"{path} has the file '{name}', outside itself; give one"):
        open_dataset("images", path)


def test_archives_of_the_folder_itself(place):
    with tarfile.open(place.parent / "x.tar", "w") as archive:
        archive.add(place, ".")
    with zipfile.ZipFile(place.parent / "x.zip", "w") as archive:
        for name in SOME:
            archive.writestr(zipfile.ZipInfo(f"./{name}"), (place / name).read_bytes())
    for kind in ("tar", "zip"):
        images = open_dataset("images", place.parent / f"x.{kind}")
        assert images.paths == ORDER and len(pixels(images)) == 5


def test_an_archive_that_was_cut_off(place):
    path = packed(place, place.parent / "x.tar")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match="x.tar"):
        open_dataset("images", path)


def test_names_that_cannot_be_written_and_pipes(place):
    os.mkfifo(place / "pipe.png")
    images = open_dataset("images", place)
    with pytest.raises(InputError, match="pipe.png: it is no file, but a folder, a pipe"):
        images.each([images.paths.index("pipe.png")], np.asarray)
    (place / "x.txt").write_bytes(b"top.png\nim\0.png\n")
    with pytest.raises(InputError, match="x.txt names .*, which has a zero byte; mend the name"):
        open_dataset("images", place / "x.txt")
    (place / os.fsdecode(b"im\xe9.png")).write_bytes(b"")
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        open_dataset("images", place)


def test_numbers_are_names_as_they_stand_there(tmp_path):
    make_folder(tmp_path, {"007.png": ("RGB", (9, 9)), "NA.png": ("RGB", (9, 9))})
    table = tmp_path / "train" / "list.csv"
    table.write_text("path\n007.png\nNA.png\n")
    assert open_dataset("images", table).paths == ("007.png", "NA.png")
