"""A report as a page: names, no network."""

import re

import numpy as np
import pytest
from helpers import write_report

from usl.data.datasets import ImageDataset, open_dataset
from usl.report.selection import Result, feature_map


def test_every_name_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    images = np.zeros((3, 4, 4, 1), np.uint8)
    data = ImageDataset(evil, "train", images, np.zeros(3, np.int64), (evil,))
    text = write_report(
        tmp_path / "r.html", dataset=data, results=[Result("seed 1", np.array([0]))]
    )
    assert evil not in text and "&lt;script&gt;" in text


@pytest.mark.slow
def test_it_needs_no_network(tmp_path):
    data = open_dataset("digits", "")
    x = np.random.RandomState(0).randn(1437, 5)
    results = [Result("seed 1", np.array([1, 2])), Result("seed 2", np.array([3]))]
    maps = feature_map(x, np.ones(1437), results)
    text = write_report(tmp_path / "r.html", dataset=data, results=results, maps=maps)
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert text.count("<svg ") == 2 and "url(" not in text and "@import" not in text
