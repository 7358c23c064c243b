"""Images in an object store, here one of files: what pyarrow opens by a URL."""

import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_folder
from pyarrow import fs

from usl import InputError
from usl.data.bucket import URL, Bucket
from usl.data.datasets import open_dataset
from usl.errors import Unreachable


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "my däta") / "train"


def test_images_of_a_url_are_those_of_the_folder(folder):
    here, there = open_dataset("images", folder), open_dataset("images", f"file://{folder}/")
    assert here.paths == there.paths and len(here) > 9
    for use in (np.asarray, lambda picture: picture.size):
        pairs = zip(*(images.each(range(len(here)), use) for images in (here, there)), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs)
    assert here.content(3) == there.content(3)
    assert np.array_equal(here.picture(4), there.picture(4))


def test_a_file_that_changes_makes_another_fingerprint(folder):
    before = open_dataset("images", f"file://{folder}").fingerprint()
    assert open_dataset("images", f"file://{folder}").fingerprint() == before
    path = folder / open_dataset("images", folder).paths[2]
    path.write_bytes(path.read_bytes() + b"\0")
    assert open_dataset("images", f"file://{folder}").fingerprint() != before


def test_a_bucket_travels_without_being_listed_again(folder, monkeypatch):
    bucket = Bucket(f"file://{folder}")
    assert bucket.read(bucket.names[0])
    sent = pickle.dumps(bucket)
    monkeypatch.setattr("usl.data.bucket.Bucket._below", None)
    again = pickle.loads(sent)
    assert again.names == bucket.names
    assert again.read(bucket.names[0]) == bucket.read(bucket.names[0])
    assert again.fingerprint(bucket.names[:2]) == bucket.fingerprint(bucket.names[:2])


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///no/such/place", "cannot list file:///no/such/place: .*No such file"),
        ("ftp://x/y", "cannot open ftp://x/y: .*; give a URL such as s3://bucket/folder that your"),
        ("s3://x/y?colour=red", "s3://x/y has the option .colour.; give some of region, scheme"),
        ("abfs://x@y.dfs.core.windows.net/z?sig=a", "has the option 'sig'; give some of region, s"),
        ("s3://[x/y", "cannot open s3://.x/y: Invalid IPv6 URL; give"),
        ("s3://me:secret@x/y", "the URL of the images has a password in it, which would be wr"),
        (
            "s3://x/y?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1",
            "cannot list s3://x/y: When listing objects .*; give a URL such as",
        ),
    ],
)
def test_places_that_are_none(url, message, monkeypatch):
    # As in a place without credentials, which would be asked for first.
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match=message):
        open_dataset("images", url)


def test_files_that_go_or_are_giants(folder, monkeypatch):
    images = open_dataset("images", f"file://{folder}", workers=1)
    (folder / images.paths[1]).unlink()
    with pytest.raises(InputError, match=f"cannot read file://{folder}/{images.paths[1]}: "):
        images.each([0, 1], np.asarray)
    (folder / images.paths[2]).write_bytes(b"none")
    with pytest.raises(
        InputError, match=f"cannot read image file://{folder}/{images.paths[2]}: it is in no known"
    ):
        images.each([2], np.asarray)
    monkeypatch.setattr("usl.data.bucket.LARGEST", 3)
    with pytest.raises(InputError, match=r"it has [\d,]+ bytes; leave it out"):
        images.each([0], np.asarray)


def test_who_may_not_list_a_bucket_is_told_so(monkeypatch, folder):
    class Forbidden(fs.LocalFileSystem):
        def get_file_info(self, selector):
            raise PermissionError("AWS Error ACCESS_DENIED during ListObjectsV2 operation")

    monkeypatch.setattr(Bucket, "store", property(lambda self: (Forbidden(), "x")))
    with pytest.raises(InputError, match="cannot list s3://x/y: AWS Error ACCESS_DENIED .*; give"):
        Bucket("s3://x/y")


@pytest.mark.parametrize("name", ["a/../../x.jpg", "/x.jpg"])
def test_files_whose_names_lead_out(monkeypatch, name):
    listed(monkeypatch, f"x/{name}")
    with pytest.raises(InputError, match="s3://x has the file .*, outside itself; give one of rel"):
        Bucket("s3://x")


def test_files_whose_names_become_one(monkeypatch):
    listed(monkeypatch, "x/a/b.jpg", "x/a//b.jpg")
    with pytest.raises(InputError, match="s3://x has two files 'a/b.jpg' but for slashes; rename"):
        Bucket("s3://x")


def listed(monkeypatch, *paths):
    """Make every bucket have these files."""
    files = [SimpleNamespace(path=path, size=1, mtime_ns=0, is_file=True) for path in paths]
    store = SimpleNamespace(get_file_info=lambda selector: files)
    monkeypatch.setattr(Bucket, "store", property(lambda self: (store, "x")))


def test_a_bucket_that_does_not_answer_is_not_a_broken_image(folder, monkeypatch):
    images = open_dataset("images", f"file://{folder}", workers=1)

    class Silent(fs.LocalFileSystem):
        def open_input_file(self, path):
            raise OSError("AWS Error SLOW_DOWN during GetObject operation")

    monkeypatch.setattr(Bucket, "store", property(lambda self: (Silent(), "x")))
    with pytest.raises(Unreachable, match="AWS Error SLOW_DOWN .*; run the command again, which"):
        images.each([0], np.asarray, instead=lambda row, error: None)


def test_only_images_of_your_own_are_read_from_urls():
    with pytest.raises(InputError, match="`dataset` imagenet is not read from `root` s3://x/y"):
        open_dataset("imagenet", "s3://x/y")
    assert not URL.fullmatch("C:/photos") and not URL.fullmatch("s3:/x") and URL.fullmatch("gs://x")


def test_without_pyarrow_an_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.fs", None)
    with pytest.raises(InputError, match="s3://x/y needs pyarrow: pip install pyarrow"):
        Bucket("s3://x/y")


def test_a_script_chooses_from_a_url(folder, tmp_path, script):
    options = ("MODEL.ARCH", "pixels", "USL.NUM_SELECTED_SAMPLES", 3, "PICKS_TO", "folder")
    for name, place in (("here", folder), ("there", f"file://{folder}")):
        script(
            "selective_labeling/usl-images.py", "--opts", "DATASET.ROOT_DIR", place,
            "RUN_DIR", tmp_path / name, *options,
        )  # fmt: skip
    one, other = (tmp_path / name / "selected.csv" for name in ("here", "there"))
    assert one.read_text() == other.read_text()
    copies = [
        sorted(p.name for p in (tmp_path / name / "picks").rglob("*.*"))
        for name in ("here", "there")
    ]
    assert copies[0] == copies[1] and len(copies[0]) == 3
