"""Images in archives and parquet files, one or many, of this machine or a bucket."""

import gc
import io
import os
import pickle
import shutil
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from commands import own_images
from helpers import make_folder, printed_alone
from PIL import Image
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


def make_shards(folder, kind, content):
    """A folder of either."""
    if kind == "tar":
        make_tars(folder, content)
    else:
        make_parquet(folder / "x.parquet", content)


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
    make_shards(tmp_path / "s", kind, content)
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
    with pytest.raises(InputError, match="cannot list file://.*/none.tar: .*; give a URL"):
        open_dataset("images", f"file://{tmp_path}/none.tar")


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_shard_that_was_cut_off(content, tmp_path, place):
    path = make_tars(tmp_path / "s", content) / "s-005.tar"
    path.write_bytes(path.read_bytes()[:1900])
    root = tmp_path / "s" if place == "here" else f"file://{tmp_path}/s"
    with pytest.raises(InputError, match="s-005.tar"):
        open_dataset("images", root)


@pytest.mark.parametrize("place", ["here", "there"])
def test_a_damaged_row_group_is_unreadable(content, tmp_path, place):
    path = make_parquet(tmp_path / "x.parquet", content, rows=3)
    raw = bytearray(path.read_bytes())
    page = parquet.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    raw[page : page + 30] = bytes(30)
    path.write_bytes(raw)
    images = open_dataset("images", path if place == "here" else f"file://{path}")
    found = images.each([2, 3, 5, 6], np.shape, instead=lambda row, error: str(error))
    assert [len(found[0]), len(found[3])] == [3, 3]
    assert "cannot read" in found[1] and "; replace it" in found[2] and "\n" not in found[2]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_bucket_that_stops_answering_is_not_a_broken_image(content, tmp_path, monkeypatch, kind):
    make_shards(tmp_path / "s", kind, content)
    images = pickle.loads(pickle.dumps(open_dataset("images", f"file://{tmp_path}/s")))

    store, root = images.source._archives[next(iter(images.source._archives))].file.bucket.store

    def silent(*given):
        raise OSError("curlCode: 28, Timeout was reached")

    def stalled(path):
        file = store.open_input_file(path)
        return SimpleNamespace(seek=file.seek, tell=file.tell, close=file.close, readinto=silent)

    for opening in (silent, stalled):
        answers = SimpleNamespace(open_input_file=opening), root
        monkeypatch.setattr(Bucket, "store", property(lambda self, answers=answers: answers))
        with pytest.raises(Unreachable, match="Timeout was reached; .*again, which goes on"):
            images.each([0], np.asarray, instead=lambda row, error: row)


def test_parquet_without_its_package(content, tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "x.parquet", content)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"reading .*x.parquet needs pyarrow; pip install pyarrow"):
        open_dataset("images", path)


@pytest.mark.parametrize("place", ["here", "there"])
def test_little_stays_open_of_many_shards(content, tmp_path, place):
    for number in range(9):
        make_parquet(tmp_path / "s" / f"{number}.parquet", content, rows=3)
        shutil.make_archive(tmp_path / "s" / str(number), "zip", tmp_path / "loose/train")
    make_tars(tmp_path / "s", content, each=1)
    before = open_files()
    images = open_dataset("images", tmp_path / "s" if place == "here" else f"file://{tmp_path}/s")
    assert open_files() <= before
    rows = np.random.RandomState(0).permutation(len(images))
    assert all(images.content(row) for row in rows)
    assert open_files() <= before + 4
    held = [a._open[0] for a in images.source._archives.values() if a._open is not None]
    assert 1 <= len(held) <= 4
    assert all(len(getattr(reader, "groups", ())) <= 2 for reader in held)


def open_files():
    # What other tests have left may go at any time.
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


def test_only_what_is_asked_for_is_read_of_a_parquet_file(tmp_path):
    draw = np.random.RandomState(0)
    make_parquet(tmp_path / "x.parquet", [draw.bytes(1 << 19) for _ in range(24)], rows=2)
    read = []

    class Counting(LocalFile):
        def open(self):
            file = super().open()
            return SimpleNamespace(
                read=lambda n=-1: [data := file.read(n), read.append(len(data))][0],
                seek=file.seek, tell=file.tell, close=file.close, closed=False,
                readable=lambda: True, seekable=lambda: True, writable=lambda: False,
            )  # fmt: skip

    archive = open_archive(Counting(tmp_path / "x.parquet"))
    assert sum(read) < 3 << 20
    archive.read(archive.names[9])
    assert sum(read) < 6 << 20


def test_a_row_group_too_large_for_memory_is_an_error(content, tmp_path, monkeypatch):
    path = make_parquet(tmp_path / "x.parquet", content, rows=99)
    monkeypatch.setattr("usl.data.parquet.LARGEST", 2000)
    with pytest.raises(InputError, match="row group 0 of .*x.parquet has [0-9,]+ bytes of images"):
        open_dataset("images", path)


@pytest.mark.parametrize("kind", ["MPO", "JPEG2000", "none"])
def test_rows_are_called_by_suffixes_that_are_known(tmp_path, kind):
    data = io.BytesIO()
    if kind == "none":
        data.write(b"no image")
    else:
        Image.new("RGB", (20, 20)).save(data, kind, **({"save_all": True} if kind == "MPO" else {}))
    images = open_dataset("images", make_parquet(tmp_path / "x.parquet", [data.getvalue()]))
    assert images.paths == ("0.jpeg",)
    if kind != "none":
        assert images.size_of(0) == (20, 20)


def test_a_table_of_paths_with_other_bytes_is_a_list(loose, tmp_path):
    names = open_dataset("images", loose).paths
    table = pa.table({"path": list(names), "phash": [b"12345678"] * len(names)})
    parquet.write_table(table, loose / "x.parquet")
    assert open_dataset("images", loose / "x.parquet").paths == names


def test_a_folder_called_as_archives_are(loose, tmp_path):
    folder = shutil.copytree(loose, tmp_path / "ds.parquet")
    here, there = open_dataset("images", folder), open_dataset("images", f"file://{folder}/")
    assert here.paths == there.paths and contents(here) == contents(there)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_goes_is_not_many_broken_images(content, tmp_path, kind):
    if kind == "tar":
        path = make_tars(tmp_path / "s", content) / "s-000.tar"
    else:
        path = make_parquet(tmp_path / "s" / "x.parquet", content)
    for root in (tmp_path / "s", f"file://{tmp_path}/s"):
        images = open_dataset("images", root)
        path.rename(tmp_path / "away")
        with pytest.raises(Unreachable, match=f"cannot open .*{path.name}: .*; mend that and run"):
            images.each([0], np.asarray, instead=lambda row, error: row)
        (tmp_path / "away").rename(path)


def test_links_in_a_tar_are_the_files_that_they_name(tmp_path, loose, caplog):
    first, second = open_dataset("images", loose).paths[:2]
    (loose / "deep").mkdir()
    (loose / "deep" / "soft.png").symlink_to(f"../{first}")
    (loose / "again.png").symlink_to("deep/soft.png")
    os.link(loose / second, loose / "z hard.png")
    (loose / "lost.png").symlink_to("/nowhere.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        # Links to links after these.
        for name in (first, second, "z hard.png", "deep", "again.png", "lost.png"):
            archive.add(loose / name, name)
    images = open_dataset("images", tmp_path / "x.tar")
    found = dict(zip(images.paths, contents(images), strict=True))
    assert sorted(found) == sorted([first, second, "again.png", "deep/soft.png", "z hard.png"])
    assert found["deep/soft.png"] == found["again.png"] == (loose / first).read_bytes()
    assert found["z hard.png"] == (loose / second).read_bytes()
    assert "x.tar: left out 1 links to what is not in it" in caplog.text
