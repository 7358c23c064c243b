"""Copies of picks: under their names, whole or not at all."""

import zipfile

import pytest
from helpers import make_folder

from usl import InputError
from usl.data.datasets import open_dataset
from usl.lists.copies import check_form, copy_picks

NAMES = {name: ("RGB", (9, 9)) for name in ("a/same.png", "b/same.png", "ü 'x'.png")}


@pytest.fixture
def images(tmp_path):
    return open_dataset("images", make_folder(tmp_path, NAMES) / "train")


def test_a_folder_of_copies_replaces_the_one_before(images, tmp_path):
    for picks in ([0, 1, 2], [1, 2]):
        where = copy_picks(images, picks, tmp_path / "picks", "folder")
        found = {path.relative_to(where).as_posix() for path in where.rglob("*.png")}
        assert found == {images.paths[pick] for pick in picks}
    for name in found:
        assert (where / name).read_bytes() == (images.folder / name).read_bytes()
    assert not list(tmp_path.glob(".picks*"))


def test_a_folder_of_copies_with_other_files_is_kept(images, tmp_path):
    for round in ("", ".1"):
        where = copy_picks(images, [0, 1], tmp_path / "picks", "folder")
        (where / "a" / "notes.txt").write_text(f"a cat{round}")
        copy_picks(images, [2], where, "folder")
        assert [path.name for path in where.rglob("*.*")] == [images.paths[2]]
        kept = tmp_path / f"picks.kept{round}"
        assert (kept / "a" / "notes.txt").read_text() == f"a cat{round}"
        assert {path.name for path in kept.rglob("*.png")} == {"same.png"}


def test_a_zip_of_copies(images, tmp_path):
    where = copy_picks(images, [2, 0], tmp_path / "picks", "zip")
    assert where == tmp_path / "picks.zip"
    with zipfile.ZipFile(where) as archive:
        assert archive.namelist() == ["ü 'x'.png", "a/same.png"]
        assert archive.read("a/same.png") == (images.folder / "a/same.png").read_bytes()
    # A zip can be chosen from, and its picks copied.
    packed = open_dataset("images", where)
    again = copy_picks(packed, [0], tmp_path / "again", "folder")
    assert (again / "a/same.png").read_bytes() == (images.folder / "a/same.png").read_bytes()


def test_what_cannot_be_copied(images, tmp_path):
    with pytest.raises(InputError, match="unknown `picks_to` 'tar'; choose folder or zip"):
        check_form("tar")
    (images.folder / "a" / "same.png").unlink()
    for form in ("folder", "zip"):
        with pytest.raises(InputError, match="cannot read .*a/same.png: No such file"):
            copy_picks(images, [1, 0], tmp_path / "picks", form)
    assert not (tmp_path / "picks").exists() and not (tmp_path / "picks.zip").exists()
