"""What a report of a training shows."""

import re

import pandas as pd

from usl.report.page import Table
from usl.report.training import write_training_report

METRICS = pd.DataFrame(
    {"epoch": [1, 2, 3], "loss": [3.0, 2.0, 1.25], "macc/0": [50.0, None, 75.5], "macc/1": 60.0}
)


def written(path, metrics=METRICS, **options):
    write_training_report(
        path, metrics, title="<Training>", facts={"Network": "SmallResNet"}, command="python x.py",
        timings={"training": 1.25}, **options,
    )  # fmt: skip
    return path.read_text()


def test_last_numbers_and_a_picture_for_each_name(tmp_path):
    text = written(tmp_path / "r.html")
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", text)
    # A number that was not measured in the last epoch is the last that was.
    assert rows[:2] == [("loss", "1.25"), ("macc", "75.5, 60")]
    assert re.findall(r"<figcaption>([^<]*)", text) == ["loss", "macc"]
    assert "Last numbers" in text and "<dt>Epochs</dt><dd>3</dd>" in text
    assert "&lt;Training&gt;" in text and "<Training>" not in text and "python x.py" in text


def test_a_table_of_results_has_its_own_heading(tmp_path):
    table = Table("Accuracy on test images", ["seed", "accuracy"], [["1", "80.00"]])
    metrics = METRICS.rename(columns={"epoch": "step"})
    text = written(tmp_path / "r.html", metrics, table=table)
    assert "<h2>Accuracy on test images</h2>" in text and "Last numbers" not in text
    assert "<dt>Steps</dt><dd>3</dd>" in text and "80.00" in text
