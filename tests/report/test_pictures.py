"""Pictures of a report, and the positions on its map."""

import numpy as np
import pytest
from helpers import decode, make_folder, picture
from PIL import Image

from usl.data.datasets import open_dataset
from usl.report.pictures import BACKGROUND, image_uri, plane
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
    assert text.count("<li><img src=") == 3 and "<br>" in text and "cat" in text
