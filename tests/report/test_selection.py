"""What a report of picks shows."""

import re

import numpy as np
import pytest
from helpers import decode, write_report

from usl.data.datasets import open_dataset
from usl.report.selection import Result, Table


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


def test_counts_timings_command_and_table(tmp_path):
    data = open_dataset("digits", "")
    picks = np.flatnonzero(data.labels == 3)[:4]
    table = Table("Worth", ["", "40 labels"], [["USL", "80.0 ± 1.0"]])
    text = write_report(
        tmp_path / "r.html", dataset=data, results=[Result("seed 1", picks)], table=table
    )
    counts = re.findall(r"<span(?: class=\"none\")?>(\d+)</span>\n", text)
    assert counts == ["0", "0", "0", "4", *"000000"]
    for part in ("80.0 ± 1.0", "python x.py", "<td>features</td><td>1.2</td>"):
        assert part in text


@pytest.mark.parametrize(
    ("color_by", "meaning"), [("density", "denser"), ("confidence", "more confident")]
)
def test_the_map_says_what_its_colour_means(tmp_path, color_by, meaning):
    text = write_report(
        tmp_path / "r.html",
        dataset=open_dataset("digits", ""),
        results=[Result("head 0", np.array([5]))],
        maps=["data:image/svg+xml;base64,"],
        color_by=color_by,
    )
    assert f"The bluer, the {meaning};" in text
    assert ("denser" in text) == (color_by == "density")


def test_other_selections_keep_their_names(tmp_path):
    results = [Result(name, np.array([5])) for name in ("USL, seed 1", "USL, seed 2", "head 1")]
    text = write_report(tmp_path / "r.html", dataset=open_dataset("digits", ""), results=results)
    assert "<summary>USL, seed 2</summary>" in text and "<summary>Head 1</summary>" in text
