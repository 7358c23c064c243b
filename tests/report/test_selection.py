"""What a report of picks shows."""

import re

import numpy as np
import pytest
from helpers import decode, write_report

from usl.data.datasets import open_dataset
from usl.report.pictures import FeatureMap
from usl.report.selection import Coverage, Duplicates, Result


def test_pictures_are_those_of_the_picks(tmp_path):
    data = open_dataset("digits", "")
    text = write_report(
        tmp_path / "r.html", dataset=data, results=[Result("seed 1", np.array([5, 900]))]
    )
    uris = re.findall(r'<img src="(data:image/png[^"]*)" alt="image (\d+)"', text)
    assert [int(index) for _, index in uris] == [5, 900]
    for uri, index in uris:
        expected = data.images[int(index), :, :, 0].astype(int) * 255 // 16
        assert np.array_equal(decode(uri), expected)


def test_counts_timings_and_command(tmp_path):
    data = open_dataset("digits", "")
    picks = np.flatnonzero(data.labels == 3)[:4]
    text = write_report(tmp_path / "r.html", dataset=data, results=[Result("seed 1", picks)])
    counts = re.findall(r"<span(?: class=\"none\")?>(\d+)</span>\n", text)
    assert counts == ["0", "0", "0", "4", *"000000"]
    for part in ("python x.py", "<td>features</td><td>1.2</td>"):
        assert part in text


@pytest.mark.parametrize(
    ("color_by", "meaning"), [("density", "denser"), ("confidence", "more confident")]
)
def test_the_map_says_what_its_colour_means(tmp_path, color_by, meaning):
    text = write_report(
        tmp_path / "r.html",
        dataset=open_dataset("digits", ""),
        results=[Result("head 0", np.array([5]))],
        maps=[FeatureMap(["M1 2h0"], [(3.0, 4.0)])],
        color_by=color_by,
    )
    assert f"The bluer, the {meaning};" in text
    assert ("denser" in text) == (color_by == "density")


def test_what_is_around_the_first_selections_picks(tmp_path):
    data = open_dataset("digits", "")
    around = {
        "clusters": np.array([4, 7]),
        "nearest": [np.array([10, 11]), np.array([12])],
        "edge": [np.array([13]), np.array([], dtype=int)],
    }
    results = [Result(f"seed {s}", np.array([5, 900]), **around) for s in (1, 2)]
    text = write_report(tmp_path / "r.html", dataset=data, results=results)
    first, second = re.findall(r'<ul class="tiles">(.*?)</ul>', text, re.DOTALL)
    assert re.findall(r'alt="image (\d+)"', first) == ["5", "10", "11", "13", "900", "12"]
    assert first.count("Edge of its cluster") == 1 and first.count("Nearest to it") == 2
    assert 'data-cluster="7"' in first and "cluster 4" in first
    # Of the others only the picks: a page holds so many pictures.
    assert re.findall(r'alt="image (\d+)"', second) == ["5", "900"]


def test_points_of_the_map_are_links_to_picks_that_are_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("usl.report.selection.PICTURES", 1)
    text = write_report(
        tmp_path / "r.html",
        dataset=open_dataset("digits", ""),
        results=[Result("head 0", np.array([5, 900]))],
        maps=[FeatureMap(["M1 2h0"], [(3.0, 4.0), (5.0, 6.0)])],
    )
    assert re.findall(r'<a( href="[^"]*")? tabindex="-1" data-number="(\d)"', text) == [
        (' href="#pick-1-1"', "1"),
        ("", "2"),
    ]
    assert 'id="pick-1-1"' in text and "and 1 more" in text
    assert "<title>1: image 5</title>" in text and "<title>2</title>" in text


@pytest.mark.parametrize(
    ("budget", "meaning"), [(4, "after that one more adds less"), (2, "beyond your budget")]
)
def test_coverage_in_words(tmp_path, budget, meaning):
    covered = Coverage(np.array([0.2, 0.4, 0.5, 0.51, 0.52]), budget, 3, 0.72845)
    text = write_report(
        tmp_path / "r.html",
        dataset=open_dataset("digits", ""),
        results=[Result("seed 1", np.array([5]))],
        coverage=covered,
    )
    share = {4: 51, 2: 40}[budget]
    assert f"{share} % of all images are near one of the {budget} picks: within 0.728" in text
    assert f"flattens at about 3{': ' if budget > 3 else ', '}{meaning}" in text


@pytest.mark.parametrize("merged", [False, True])
def test_duplicates_in_words_and_pictures(tmp_path, merged):
    near = [(7, 2, 0.01), (9, 2, 0.02)]
    text = write_report(
        tmp_path / "r.html",
        dataset=open_dataset("digits", ""),
        results=[Result("seed 1", np.array([5]))],
        duplicates=Duplicates(np.array([0.01, 0.02, 1.0, 2.0]), 0.125, near, 3, merged),
    )
    assert "Left out as exact copies of other images: 3." in text
    assert "Nearer than 0.125 (squared), the line below, to an earlier image that can" in text
    assert "stand for them: 2 near-duplicates" in text
    assert ("left out too" in text) == merged
    pairs = text[text.index('<div class="pairs">') :]
    assert re.findall(r'alt="image (\d+)"', pairs) == ["7", "2", "9", "2"]
    assert "0.01 apart" in pairs and "0.02 apart" in pairs


def test_other_selections_keep_their_names(tmp_path):
    results = [Result(name, np.array([5])) for name in ("USL, seed 1", "USL, seed 2", "head 1")]
    text = write_report(tmp_path / "r.html", dataset=open_dataset("digits", ""), results=results)
    assert "<summary>USL, seed 2</summary>" in text and "<summary>Head 1</summary>" in text
