"""A report in a real browser: wide and narrow, with scripts and without, clicked through."""

import shutil
from itertools import pairwise

import numpy as np
import pytest
from helpers import make_folder, write_report
from toys.comparison import write_comparison

from usl.data.datasets import open_dataset
from usl.report.selection import Coverage, Duplicates, Result, feature_map

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Of files with names that are hard to show, two seeds, everything a report can have."""
    folder = tmp_path_factory.mktemp("report")
    names = [f"p/{i}.png" for i in range(37)] + ["a b.png", "<b>'\"&.png", 60 * "long" + ".png"]
    images = open_dataset(
        "images", make_folder(folder, {name: ("RGB", (90, 60)) for name in names}) / "train"
    )
    features = np.random.RandomState(0).randn(40, 5)
    picks = [np.arange(0, 40, 2), np.arange(1, 40, 2)]
    results = [
        Result(
            f"seed {s}", p, np.full(20, 2), clusters=np.arange(20),
            nearest=[np.array([(i + 1) % 40]) for i in p],
            edge=[np.array([(i + 2) % 40]) for i in p],
        )
        for s, p in enumerate(picks, start=1)
    ]  # fmt: skip
    write_report(
        folder / "r.html",
        dataset=images,
        results=results,
        maps=feature_map(features, features[:, 0], results),
        coverage=Coverage(np.linspace(0.1, 0.9, 40), 20, 12, 0.5),
        duplicates=Duplicates(np.linspace(0.1, 2, 40), 0.2, [(3, 1, 0.1)], 2, False),
    )
    return folder / "r.html", images


@pytest.fixture
def opened(browser, report):
    """Opens the report; whatever it loads from elsewhere, or prints as an error, is collected."""
    contexts, odd = [], []

    def open_(width=1280, path=report[0], **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: odd.append(str(error)))
        page.on("console", lambda message: odd.append(message.text))
        page.on("request", lambda r: r.url.startswith(("data:", "file:")) or odd.append(r.url))
        page.goto(path.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not odd


# Playwright's own code runs without the page's scripts too.
MEASURE = "() => [document.documentElement.scrollWidth, innerWidth]"
BROKEN = "() => [...document.images].filter(i => i.complete && !i.naturalWidth).length"


@pytest.mark.parametrize("width", [1280, 390])
def test_a_comparison_fits(opened, width, tmp_path):
    write_comparison(tmp_path / "report.html")
    page = opened(width, path=tmp_path / "report.html")
    content, inside = page.evaluate(MEASURE)
    assert inside == width and content <= width
    assert page.locator(".curves img").count() == 2 and page.evaluate(BROKEN) == 0
    assert page.locator("table").first.is_visible()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("scripts", [True, False])
def test_it_fits_and_opens_a_pick(opened, width, scheme, scripts):
    page = opened(width, color_scheme=scheme, java_script_enabled=scripts)
    tile = page.locator("#pick-1-3")
    assert not tile.locator(".around").is_visible()
    tile.locator("summary").focus()
    page.keyboard.press("Enter")
    assert tile.locator(".around img").count() == 2 and tile.locator(".around").is_visible()
    for details in page.locator("main > details > summary").all():
        details.click()
    content, inside = page.evaluate(MEASURE)
    assert inside == width and content <= width
    assert page.evaluate(BROKEN) == 0
    back = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) > 380) == (scheme == "light")
    # What needs scripts is there only with them.
    for control in ("form.filters", ".copy", ".zoom"):
        assert page.locator(control).first.is_visible() == scripts


def test_filters(opened):
    page = opened()
    tiles, form = page.locator("li[data-of='1']"), page.locator("form.filters").first
    shown = lambda: [i for i, tile in enumerate(tiles.all(), start=1) if tile.is_visible()]  # noqa: E731
    assert shown() == list(range(1, 21))
    form.locator("[name=low]").fill("4")
    form.locator("[name=high]").fill("6")
    assert shown() == [4, 5, 6] and form.locator("[role=status]").inner_text() == "3 of 20 picks"
    assert page.locator(".plot[data-of='1'] a.off").count() == 17
    form.locator("[name=cluster]").fill("4")
    assert shown() == [5]
    form.locator("[type=reset]").click()
    page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('20')")
    assert shown() == list(range(1, 21))


def test_the_map(opened, report):
    page = opened()
    plot = page.locator(".plot").first
    svg, mark = plot.locator("svg"), plot.locator("a[data-number='7']")
    plot.scroll_into_view_if_needed()
    mark.locator("circle").hover(force=True)
    assert plot.locator(".peek").inner_text() == f"7: {report[1].paths[12]}"
    seen = lambda: [float(number) for number in svg.get_attribute("viewBox").split()]  # noqa: E731
    plot.get_by_label("zoom in").click()
    assert seen() == pytest.approx([400 - 800 / 3, 300 - 200, 1600 / 3, 400])
    plot.get_by_label("zoom out").click()
    assert seen() == pytest.approx([0, 0, 800, 600], abs=1e-9)
    mark.dispatch_event("click")
    assert page.url.endswith("#pick-1-7")
    page.wait_for_function("document.querySelector('#pick-1-7 details').open")


@pytest.mark.parametrize("allowed", [True, False])
def test_lists_are_copied(opened, report, allowed):
    page = opened(permissions=["clipboard-read", "clipboard-write"] if allowed else [])
    if not allowed:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    bar = page.locator(".copy").first
    bar.get_by_text("Copy the indices").click()
    page.wait_for_function("document.querySelector('.copy [role=status]').textContent")
    assert bar.locator("[role=status]").inner_text() == "copied"
    if allowed:
        copied = page.evaluate("() => navigator.clipboard.readText()")
        assert copied == ", ".join(map(str, range(0, 40, 2)))
        bar.get_by_text("Copy the file names").click()
        page.wait_for_timeout(100)
        paths = page.evaluate("() => navigator.clipboard.readText()").split("\n")
        assert paths == [report[1].paths[i] for i in range(0, 40, 2)]


def test_a_reader_hears_what_is_shown(opened):
    page = opened(390)
    unnamed = "() => [...document.images].filter(i => !i.alt).length"
    assert page.evaluate(unnamed) == 0
    for control in page.locator("form.filters input, form.filters select").all():
        assert control.evaluate("e => e.labels.length") == 1
    levels = page.evaluate(
        "() => [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and all(b - a <= 2 for a, b in pairwise(levels))
    # The map is one picture with a name; its points are no stops on the way through the page.
    assert page.locator("svg[role=img][aria-label]").count() == 2
    assert page.locator("svg a:not([tabindex='-1'])").count() == 0
