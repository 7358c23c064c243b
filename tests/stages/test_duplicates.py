"""Exact and near-duplicates in a folder: found, listed, left out, and shown."""

import re
import shutil

import numpy as np
import pytest
from commands import IMAGES, own_images
from helpers import make_folder, printed_alone
from PIL import Image

from usl import InputError


@pytest.fixture
def photos(tmp_path):
    """Thirty images; of three the same bytes, the same pixels, nearly the same."""
    names = {f"{i:02}.png": ("RGB", (40, 40)) for i in range(30)}
    root = make_folder(tmp_path, names) / "train"
    shutil.copy(root / "00.png", root / "copy of 00.png")
    with Image.open(root / "01.png") as image:
        image.save(root / "01.bmp")
    with Image.open(root / "02.png") as image:
        nearly = np.asarray(image).astype(int) + np.indices((40, 40)).sum(axis=0)[..., None] % 2
    Image.fromarray(nearly.clip(0, 255).astype(np.uint8)).save(root / "=02 nearly.png")
    return root


def rows(run):
    return [line.split(",") for line in (run / "duplicates.csv").read_text().splitlines()]


EXACT = [
    ["exact", "2", "01.png", "1", "01.bmp", "0.0"],
    ["exact", "32", "copy of 00.png", "0", "00.png", "0.0"],
]


@pytest.mark.usefixtures("no_pictures")
def test_they_are_listed_and_copies_left_out(photos, tmp_path, script, capsys):
    script(IMAGES, *own_images(photos, tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 31))
    # All others can be chosen.
    assert sorted(printed_alone(capsys.readouterr().out)) == [
        i for i in range(33) if i not in (2, 32)
    ]
    head, *found = rows(tmp_path / "run")
    assert head == ["Kind", "Index", "ImageID", "OfIndex", "OfImageID", "Distance"]
    assert found[:2] == EXACT
    (near,) = found[2:]
    assert near[:5] == ["near", "31", "'=02 nearly.png", "3", "02.png"] and float(near[5]) < 1e-3
    log = (tmp_path / "run" / "run.log").read_text()
    assert "left out as copies of others, pixel by pixel: 2" in log
    assert re.search(r"nearer than \S+ \(squared\) to one that stands for them: 1;", log)
    assert np.load(tmp_path / "run" / "rows.npy").shape == (31,)


@pytest.mark.usefixtures("no_pictures")
def test_neighbours_of_all_and_of_the_rest_are_kept(photos, tmp_path, script, monkeypatch):
    reuse = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False)
    script(IMAGES, *own_images(photos, tmp_path / "run", *reuse))
    before = (tmp_path / "run" / "duplicates.csv").read_text()
    monkeypatch.setattr("usl.stages.selection.find_neighbors", None)
    script(IMAGES, *own_images(photos, tmp_path / "run", *reuse))
    assert (tmp_path / "run" / "duplicates.csv").read_text() == before


@pytest.mark.usefixtures("no_pictures")
def test_near_ones_are_merged_where_asked(photos, tmp_path, script, capsys):
    more = ("USL.MERGE_NEAR_DUPLICATES", True, "USL.NUM_SELECTED_SAMPLES", 30)
    script(IMAGES, *own_images(photos, tmp_path / "run", *more))
    assert sorted(printed_alone(capsys.readouterr().out)) == [
        i for i in range(33) if i not in (2, 31, 32)
    ]
    more = ("USL.MERGE_NEAR_DUPLICATES", True, "USL.NUM_SELECTED_SAMPLES", 31)
    with pytest.raises(
        InputError, match="is 31, and USL.MERGE_NEAR_DUPLICATES leaves .*; choose 1 to 30"
    ):
        script(IMAGES, *own_images(photos, tmp_path / "more", *more))


@pytest.mark.usefixtures("no_pictures")
def test_a_threshold_of_ones_own(photos, tmp_path, script, capsys):
    script(IMAGES, *own_images(photos, tmp_path / "run", "USL.NEAR_DUPLICATE_DISTANCE", 100.0))
    # All are near to the first that is left.
    found = rows(tmp_path / "run")[1:]
    assert found[:2] == EXACT and {(row[0], row[3]) for row in found[2:]} == {("near", "0")}
    assert len(found) == 2 + 30
    assert float(found[2][5]) <= float(found[-1][5])


@pytest.mark.usefixtures("no_pictures")
def test_a_labelled_copy_counts_for_the_image_that_stands_for_it(photos, tmp_path, script, capsys):
    answers = tmp_path / "answers.csv"
    answers.write_text("Index\n31\n32\n")
    more = ("USL.LABELED_INDICES_PATH", answers, "USL.MERGE_NEAR_DUPLICATES", True)
    script(IMAGES, *own_images(photos, tmp_path / "run", *more, "USL.NUM_SELECTED_SAMPLES", 28))
    # 0 and 3 stand for them: chosen are all others.
    assert sorted(printed_alone(capsys.readouterr().out)) == [
        i for i in range(33) if i not in (0, 2, 3, 31, 32)
    ]
    assert (
        "images that are labelled already: 2; round 2" in (tmp_path / "run" / "run.log").read_text()
    )


@pytest.mark.usefixtures("no_pictures")
def test_without_duplicates_there_is_no_list(photos, tmp_path, script, capsys):
    run = tmp_path / "run"
    script(IMAGES, *own_images(photos, run))
    for name in ("copy of 00.png", "01.bmp", "=02 nearly.png"):
        (photos / name).unlink()
    script(IMAGES, *own_images(photos, run))
    assert not (run / "duplicates.csv").exists() and not (run / "rows.npy").exists()
    assert "stands for them: 0; half" in (run / "run.log").read_text()


def test_the_report_shows_them(photos, tmp_path, script):
    script(IMAGES, *own_images(photos, tmp_path / "run"))
    text = (tmp_path / "run" / "report.html").read_text()
    assert "Left out as exact copies of other images: 2. Nearer than " in text
    assert 'alt="=02 nearly.png"' in text[text.index('<div class="pairs">') :]
    assert "How much of the pool they cover" in text and "Nearest to it" in text


@pytest.mark.usefixtures("no_pictures")
def test_one_image_and_only_copies(tmp_path, script, capsys):
    root = make_folder(tmp_path, {"a.png": ("RGB", (9, 9))}) / "train"
    for name in "bcdefghijkl":
        shutil.copy(root / "a.png", root / f"{name}.png")
    script(IMAGES, *own_images(root, tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 1))
    assert printed_alone(capsys.readouterr().out) == [0]
    assert len(rows(tmp_path / "run")) == 12
    with pytest.raises(InputError, match="is 2, and exact copies are left out; choose 1 to 1"):
        script(IMAGES, *own_images(root, tmp_path / "two", "USL.NUM_SELECTED_SAMPLES", 2))
