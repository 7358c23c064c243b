"""Pictures of a report, and the positions on its map."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import decode, make_folder, picture
from PIL import Image

from usl.data.datasets import open_dataset
from usl.report.pictures import (
    BACKGROUND,
    HEIGHT,
    MARGIN,
    WIDTH,
    draw_map,
    histogram_uri,
    image_uri,
    picture_uris,
    plane,
)
from usl.report.selection import Result, write_selection_report


def test_colour_pictures():
    image = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(decode(image_uri(image)), image)


@pytest.mark.parametrize("n", [1, 2, 4, 40, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_features_have_a_map(n):
    for x in (np.ones((n, 3)), np.random.RandomState(0).randn(n, 3) * 1e6):
        rows, positions = plane(x, np.array([n - 1]))
        assert rows[0] == n - 1 and len(set(rows.tolist())) == len(rows) == len(positions)
        assert len(rows) == min(n, BACKGROUND + 1)
        assert np.isfinite(positions).all()


def test_pictures_are_small(folder_images, tmp_path):
    make_folder(tmp_path, {"a/big.jpg": ("RGB", (1200, 900)), "a/small.png": ("L", (20, 30))})
    big, small = (open_dataset("folder", tmp_path).picture(i) for i in (0, 1))
    assert big.shape == (96, 128, 3) and big.dtype == np.uint8
    with Image.open(tmp_path / "train" / "a" / "big.jpg") as image:
        theirs = np.asarray(image.resize((128, 96), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(big - theirs).mean() < 4
    assert np.array_equal(small, np.asarray(picture("L", (20, 30), 1).convert("RGB")))
    assert image_uri(big).startswith("data:image/jpeg") and len(image_uri(big)) < 15_000
    assert image_uri(small).startswith("data:image/png")
    results = [Result("seed 1", np.array([0, 1, 9]))]
    path = tmp_path / "r.html"
    write_selection_report(
        path, results, title="t", facts={}, command="", timings={}, dataset=folder_images
    )
    text = path.read_text()
    assert len(re.findall(r"<li [^>]*><img src=", text)) == 3 and "<br>" in text and "cat" in text


def test_a_map_holds_every_point_and_the_picks_places():
    positions = np.array([[0.0, 0.0], [1.0, 5.0], [2.0, 10.0], [0.5, 5.0]])
    drawn = draw_map(positions, np.array([3.0, 1.0, 2.0, 0.0]), np.array([2, 0]))
    assert drawn.picks == [(WIDTH - MARGIN, HEIGHT - MARGIN), (MARGIN, MARGIN)]
    assert [len(path) > 0 for path in drawn.levels] == [True] * 4 + [False] * 2
    # The lowest colour first.
    assert drawn.levels[0] == f"M{MARGIN + (WIDTH - 2 * MARGIN) / 4:g} {HEIGHT / 2:g}h0"
    assert drawn.levels[3] == f"M{MARGIN} {MARGIN}h0"


def test_smaller_pictures_and_files_that_are_gone(folder_images, tmp_path):
    big = np.random.RandomState(0).randint(0, 256, (90, 128, 3)).astype(np.uint8)
    small = decode(image_uri(big, side=64))
    assert small.shape == (45, 64, 3)
    uris = picture_uris(replace(folder_images, paths=("no.png", *folder_images.paths[1:])), [0, 2])
    assert uris[0] is None and uris[2].startswith("data:image/")


def test_a_histogram_of_anything():
    for values in (np.array([0.0, np.inf]), np.array([1.0]), np.random.RandomState(0).rand(99)):
        assert histogram_uri(values, axis="x", mark=0.0).startswith("data:image/svg+xml")
        assert histogram_uri(values, axis="x", mark=0.5).startswith("data:image/svg+xml")
