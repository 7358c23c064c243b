"""The benchmark of a messy folder of real photographs, small: what it leaves behind."""

import subprocess
import sys

import pytest
from helpers import ROOT, csv_rows


@pytest.mark.slow
def test_every_run_chooses_the_same_from_a_messy_folder(tmp_path):
    words = [sys.executable, "benchmarks/own_images.py", str(tmp_path), "--smoke"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("True") == 4
    assert "shards are there already" in (tmp_path / "killed" / "run.log").read_text()
    run = tmp_path / "again"
    unreadable = {row["ImageID"].rpartition("/")[2] for row in csv_rows(run / "unreadable.csv")}
    assert unreadable == {"broken.jpg", "cut.png", "empty.png", "gone.png", "page.png"}
    copies = {
        row["ImageID"].rpartition("/")[2]: row["OfImageID"].rpartition("/")[2]
        for row in csv_rows(run / "duplicates.csv")
        if row["Kind"] == "exact"
    }
    assert copies == {"second.png": "first.png", "third.png": "first.png"}
    assert len({row["Index"] for row in csv_rows(run / "selected.csv")}) == 20
    text = (run / "run.log").read_text()
    assert "left out 1 .mp4, 1 .txt" in text or "left out 1 .mp4, 1 .txt" in done.stderr
