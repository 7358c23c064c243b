"""Images in archives and parquet files, one or many, of this machine or a bucket."""

import io
import os
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pytest
from commands import own_images
from helpers import make_folder, printed_alone
from pyarrow import parquet

from usl import InputError
from usl.data.archive import LocalFile
from usl.data.archives import open_archive
from usl.data.bucket import Bucket
from usl.data.datasets import open_dataset
from usl.errors import Unreachable

IMAGES = "selective_labeling/usl-images.py"


@pytest.fixture
def loose(tmp_path):
    return make_folder(tmp_path / "loose") / "train"


@pytest.fixture
def content(loose):
    """The bytes of each image, in their order."""
    images = open_dataset("images", loose)
    return [images.content(row) for row in range(len(images))]


def contents(images):
    return [images.content(row) for row in range(len(images))]


def pixels(images):
    return images.each(range(len(images)), np.asarray)


def make_tars(folder, content, *, each=5):
    """WebDataset's shards: samples of some files, in an order of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(0, len(content), each):
        with tarfile.open(folder / f"s-{number:03}.tar", "w") as shard:
            for row in range(number, min(number + each, len(content))):
                for suffix, data in ((".cls", b"3"), (".png", content[row])):
                    info = tarfile.TarInfo(f"{row:04}{suffix}")
                    info.size = len(data)
                    shard.addfile(info, io.BytesIO(data))
    return folder


def make_parquet(path, content, *, form="struct", rows=3, column="image"):
    """A file of Hugging Face's data sets, of few rows a group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = content
    if form == "struct":
        images = [{"bytes": data, "path": None} for data in content]
    table = pa.table({"label": list(range(len(content))), column: images})
    parquet.write_table(table, path, row_group_size=rows)
    return path


@pytest.mark.parametrize("place", ["here", "there"])
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_of_shards_are_those_of_the_files(loose, content, tmp_path, kind, place):
    folder = tmp_path / "my shärds"
    if kind == "tar":
        make_tars(folder / "a", content)
        names = [f"a/s-{row // 5 * 5:03}.tar/{row:04}.png" for row in range(len(content))]
        left = f"{len(content)} .cls"
    else:
        for number, form in ((0, "struct"), (6, "plain")):
            make_parquet(folder / f"{number}.parquet", content[number:][:6], form=form)
        names = [f"{row // 6 * 6}.parquet/{row % 6}.png" for row in range(len(content))]
        left = "1 .md"
        (folder / "README.md").touch()
    root = folder if place == "here" else f"file://{folder}"
    images = open_dataset("images", root, workers=3)
    assert list(images.paths) == names
    assert contents(images) == content
    assert images.remarks == (f"{root}: left out {left}",)
    for mine, theirs in zip(pixels(images), pixels(open_dataset("images", loose)), strict=True):
        assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("kind", ["tar", "parquet", "zip"])
def test_an_archive_by_itself(content, tmp_path, kind):
    if kind == "tar":
        path = make_tars(tmp_path / "t", content, each=99) / "s-000.tar"
    elif kind == "parquet":
        path = make_parquet(tmp_path / "p.parquet", content, rows=5, form="plain", column="jpg")
    else:
        shutil.make_archive(tmp_path / "z", "zip", tmp_path / "loose/train")
        path = tmp_path / "z.zip"
    here, there = open_dataset("images", path), open_dataset("images", f"file://{path}")
    assert contents(here) == contents(there) == content
    assert there.paths == tuple(f"{path.name}/{name}" for name in here.paths)
    assert not any(name.startswith(path.name) for name in here.paths)


def test_archives_beside_images_are_left_out(loose, content):
    make_tars(loose, content)
    images = open_dataset("images", loose)
    assert contents(images) == content and "3 .tar" in images.remarks[0]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_travel_without_being_listed_again(content, tmp_path, monkeypatch, kind):
    if kind == "tar":
        make_tars(tmp_path / "s", content)
    else:
        make_parquet(tmp_path / "s" / "x.parquet", content)
    for root in (tmp_path / "s", f"file://{tmp_path}/s"):
        images = open_dataset("images", root)
        assert images.content(0) == content[0]
        with monkeypatch.context() as patch:
            for name in ("archive.Tar", "parquet.Parquet"):
                patch.setattr(f"usl.data.{name}._listed", None)
            again = pickle.loads(pickle.dumps(images))
            assert again.paths == images.paths and again.fingerprint() == images.fingerprint()
            assert contents(again) == content


def test_the_fingerprint_is_that_of_the_shards_that_are_used(content, tmp_path):
    make_tars(tmp_path / "s", content)
    images = open_dataset("images", tmp_path / "s")
    os.utime(tmp_path / "s" / "s-005.tar", ns=(0, 0))
    again = open_dataset("images", tmp_path / "s")
    assert again.fingerprint() != images.fingerprint()
    assert again.part(0, 5).fingerprint() == images.part(0, 5).fingerprint()
    assert again.part(0, 6).fingerprint() != images.part(0, 6).fingerprint()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_selection_from_shards(content, tmp_path, script, capsys, kind):
    if kind == "tar":
        make_tars(tmp_path / "s", content)
    else:
        make_parquet(tmp_path / "s" / "x.parquet", [*content, None])
    runs = {}
    for root in (tmp_path / "s", tmp_path / "loose" / "train"):
        more = ("PICKS_TO", "folder")
        script(IMAGES, *own_images(root, tmp_path / f"run {root.name}", *more))
        runs[root.name] = printed_alone(capsys.readouterr().out)
    assert runs["s"] == runs["train"]
    copies = [p for p in (tmp_path / "run s" / "picks").rglob("*.*") if p.is_file()]
    assert sorted(p.read_bytes() for p in copies) == sorted(content[row] for row in runs["s"])
    if kind == "parquet":
        unreadable = (tmp_path / "run s" / "unreadable.csv").read_text()
        assert "the row has no image; leave it out" in unreadable


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0]}, "x.parquet has no column path, file, filename, .*; name its paths so"),
        ({"a": [b"x"], "b": [b"x"]}, "x.parquet has several columns of bytes, a, b; call that of"),
        ({"image": [b"x"], "b": [b"x"]}, "image .*x.parquet/0.jpeg: it is in no known format"),
    ],
)
def test_parquet_files_of_something_else(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=message):
        pixels(open_dataset("images", tmp_path / "x.parquet"))


def test_shards_of_something_else(tmp_path, content):
    make_parquet(tmp_path / "s" / "x.parquet", content)
    parquet.write_table(pa.table({"path": ["x.png"]}), tmp_path / "s" / "y.parquet")
    with pytest.raises(InputError, match="y.parquet has no column of image files; give a .zip, an"):
        open_dataset("images", tmp_path / "s")
    (tmp_path / "s" / "y.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="cannot read .*y.parquet: .*; give a .zip, an uncompress"):
        open_dataset("images", tmp_path / "s")
    (tmp_path / "list.txt").write_text("none.tar")
    with pytest.raises(InputError, match="cannot read .*none.tar: No such file"):
        open_dataset("images", tmp_path / "list.txt")
    with pytest.raises(InputError, match="there is no file file://.*/none.tar; give a URL"):
        open_dataset("images", f"file://{tmp_path}/none.tar")


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_shard_that_was_cut_off(content, tmp_path, place):
    path = make_tars(tmp_path / "s", content) / "s-005.tar"
    path.write_bytes(path.read_bytes()[:1900])
    root = tmp_path / "s" if place == "here" else f"file://{tmp_path}/s"
    with pytest.raises(InputError, match="s-005.tar"):
        open_dataset("images", root)


def test_a_damaged_row_group_here_is_unreadable(content, tmp_path):
    path = make_parquet(tmp_path / "x.parquet", content, rows=3)
    raw = bytearray(path.read_bytes())
    place = parquet.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    raw[place : place + 30] = bytes(30)
    path.write_bytes(raw)
    images = open_dataset("images", path)
    found = images.each([2, 3, 5, 6], np.shape, instead=lambda row, error: str(error))
    assert [len(found[0]), len(found[3])] == [3, 3]
    assert "cannot read" in found[1] and "; replace it" in found[2]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_bucket_that_stops_answering_is_not_a_broken_image(content, tmp_path, monkeypatch, kind):
    if kind == "tar":
        make_tars(tmp_path / "s", content)
    else:
        make_parquet(tmp_path / "s" / "x.parquet", content)
    images = pickle.loads(pickle.dumps(open_dataset("images", f"file://{tmp_path}/s")))

    class Silent:
        def open_input_file(self, path):
            raise OSError("curlCode: 28, Timeout was reached")

    monkeypatch.setattr(Bucket, "store", property(lambda self: (Silent(), "x")))
    with pytest.raises(Unreachable, match="Timeout was reached; run the command again"):
        images.each([0], np.asarray, instead=lambda row, error: row)


def test_parquet_without_its_package(content, tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "x.parquet", content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"reading .*x.parquet needs pyarrow; pip install 'usl\[p"):
        open_dataset("images", path)


def test_only_some_row_groups_are_kept(content, tmp_path):
    archive = open_archive(LocalFile(make_parquet(tmp_path / "x.parquet", content, rows=3)))
    for name in (*archive.names, *reversed(archive.names)):
        archive.read(name)
        assert len(archive._groups) <= 2
