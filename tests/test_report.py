import base64
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from usl.data.datasets import ImageDataset, open_dataset
from usl.report.pictures import BACKGROUND, image_uri, plane
from usl.report.selection import SeedResult, Table, feature_map, write_selection_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def decode(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def write(path, *, dataset, results, **options):
    write_selection_report(
        path, results, title="Picks", facts={"Data set": dataset.name}, command="python x.py",
        timings={"features": 1.25}, dataset=dataset, **options,
    )  # fmt: skip
    return path.read_text()


def test_pictures_are_those_of_the_picks(tmp_path):
    data = open_dataset("digits", "")
    text = write(tmp_path / "r.html", dataset=data, results=[SeedResult(1, np.array([5, 900]))])
    uris = re.findall(r'<img src="(data:image/png[^"]*)" alt="image (\d+)"', text)
    assert [int(index) for _, index in uris] == [5, 900]
    for uri, index in uris:
        expected = data.images[int(index), :, :, 0].astype(int) * 255 // 16
        assert np.array_equal(decode(uri), expected)


def test_colour_pictures():
    image = np.random.RandomState(0).randint(0, 256, (32, 32, 3)).astype(np.uint8)
    assert np.array_equal(decode(image_uri(image)), image)


def test_counts_timings_command_and_table(tmp_path):
    data = open_dataset("digits", "")
    picks = np.flatnonzero(data.labels == 3)[:4]
    table = Table(["", "40 labels"], [["USL", "80.0 ± 1.0"]])
    text = write(tmp_path / "r.html", dataset=data, results=[SeedResult(1, picks)], table=table)
    counts = re.findall(r"<span(?: class=\"none\")?>(\d+)</span>\n", text)
    assert counts == ["0", "0", "0", "4", *"000000"]
    for part in ("80.0 ± 1.0", "python x.py", "<td>features</td><td>1.2</td>"):
        assert part in text


def test_every_name_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    images = np.zeros((3, 4, 4, 1), np.uint8)
    data = ImageDataset(evil, "train", images, np.zeros(3, np.int64), (evil,))
    text = write(tmp_path / "r.html", dataset=data, results=[SeedResult(1, np.array([0]))])
    assert evil not in text and "&lt;script&gt;" in text


def test_it_needs_no_network(tmp_path):
    data = open_dataset("digits", "")
    x = np.random.RandomState(0).randn(1437, 5)
    results = [SeedResult(1, np.array([1, 2])), SeedResult(2, np.array([3]))]
    maps = feature_map(x, np.ones(1437), results)
    text = write(tmp_path / "r.html", dataset=data, results=results, maps=maps)
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:") for source in sources)
    assert text.count("data:image/svg+xml") == 2 and "url(" not in text


@pytest.mark.parametrize("n", [1, 2, 4, 40, 3000])
def test_any_features_have_a_map(n):
    for x in (np.ones((n, 3)), np.random.RandomState(0).randn(n, 3) * 1e6):
        rows, places = plane(x, np.array([n - 1]))
        assert rows[0] == n - 1 and len(set(rows.tolist())) == len(rows) == len(places)
        assert len(rows) == min(n, BACKGROUND + 1)
        assert np.isfinite(places).all()


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_real_browser(tmp_path, width):
    data = open_dataset("digits", "")
    results = [SeedResult(s, np.arange(40) * 7 + s, np.full(40, 3)) for s in (1, 2)]
    maps = feature_map(np.random.RandomState(0).randn(1437, 5), np.ones(1437), results)
    path = tmp_path / "r.html"
    text = write(path, dataset=data, results=results, maps=maps)
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
