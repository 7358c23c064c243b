"""A report as a page: names, no network, a real browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers import write_report

from usl.data.datasets import ImageDataset, open_dataset
from usl.report.selection import Result, feature_map

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


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
    assert sources and all(source.startswith("data:") for source in sources)
    assert text.count("data:image/svg+xml") == 2 and "url(" not in text


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_real_browser(tmp_path, width):
    data = open_dataset("digits", "")
    results = [Result(f"seed {s}", np.arange(40) * 7 + s, np.full(40, 3)) for s in (1, 2)]
    maps = feature_map(np.random.RandomState(0).randn(1437, 5), np.ones(1437), results)
    path = tmp_path / "r.html"
    text = write_report(path, dataset=data, results=results, maps=maps)
    probe = (
        "<script>addEventListener('load', () => { const i = [...document.images];"
        "document.title = ['measured', document.documentElement.scrollWidth, innerWidth,"
        "i.length, i.filter(x => x.complete && !x.naturalWidth).length].join(' ') })</script>"
    )
    # A frame of the wanted width: a headless window cannot be narrower than 500 pixels.
    path.write_text(text.replace("</body>", f"{probe}</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<iframe id="f" src="r.html" width="{width}" height="900" frameborder="0"></iframe>'
        "<script>addEventListener('load', () => setTimeout(() => { document.title ="
        "document.getElementById('f').contentDocument.title }, 500))</script>"
    )
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", "--virtual-time-budget=5000", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    measured = re.search(r"<title>measured (\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert measured, done.stdout[:500] + done.stderr[-500:]
    content, inside, images, broken = map(int, measured.groups())
    assert inside == width and content <= width
    assert images == 82 and broken == 0
