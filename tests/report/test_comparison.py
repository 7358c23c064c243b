"""The report of a comparison: its tables, its figure, names that are hard to show."""

import re

import pandas as pd
from toys.comparison import EVIL, compared, write_comparison

from usl.ranking import rank_table
from usl.report.comparison import accuracy_figure, rank_texts


def test_ranks_as_texts():
    texts = rank_texts(rank_table(compared()))
    assert texts.loc["USL"].tolist() == ["1.0", "0.0 [0.0, 0.0]", "5.0 [5.0, 5.0]"]
    assert texts.loc["random"].tolist() == ["2.0", "5.0 [5.0, 5.0]", "0.0 [0.0, 0.0]"]


def test_all_of_it_is_in_the_page(tmp_path):
    write_comparison(tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert EVIL not in text and "&lt;b&gt;&#39;&amp; a_$x^_$" in text
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads[:3] == [
        "Which selector leads",
        "Accuracy over labels",
        "digits: accuracy of a linear probe, %",
    ]
    assert "digits: accuracy of FixMatch, %" in heads
    for part in (
        "<td>51.5 ± 0.7</td>",
        "<th>10 labels</th>",
        "<td>9.0 ± 0.0</td>",
        "<td>0.25 ± 0</td>",
    ):
        assert part in text
    assert text.count("data:image/svg+xml") == 2
    figure = (tmp_path / "accuracy.svg").read_text()
    write_comparison(tmp_path / "report.html")
    assert (tmp_path / "accuracy.svg").read_text() == figure


def test_what_the_figure_shows():
    """Means with their spread, a panel a data set; of many selectors only the first in colour."""
    order = [f"rule {i}" for i in range(7)] + ["random"]
    rows = pd.concat([compared().query("selector == 'USL'").assign(selector=s) for s in order])
    panels = [axes for axes in accuracy_figure(rows, order).axes if axes.get_visible()]
    assert [panel.get_title() for panel in panels] == ["digits", EVIL]
    lines = {bar.get_label(): bar for bar in panels[0].containers}
    assert list(lines) == ["random", "others", *reversed(order[:5])]
    line, _, (bars,) = lines["rule 0"]
    assert line.get_xdata().tolist() == [10, 40] and line.get_ydata().tolist() == [56.5, 56.5]
    half = 0.5**0.5
    assert [[round(y, 6) for _, y in bar] for bar in bars.get_segments()] == [
        [round(56.5 - half, 6), round(56.5 + half, 6)]
    ] * 2
