"""The comparison of selectors."""

import csv
import re

import numpy as np
import pytest
from commands import COMPARE

from usl import InputError


@pytest.mark.slow
def test_compare_on_digits(tmp_path, script, capsys):
    elsewhere = tmp_path / "{budget}" / "digits_mine_seed{seed}.csv"
    for seed, budget in ((1, 20), (1, 40), (2, 20), (2, 40)):
        (tmp_path / str(budget)).mkdir(exist_ok=True)
        indices = "\n".join(map(str, range(seed, 10 * budget, 10)))
        (tmp_path / str(budget) / f"digits_mine_seed{seed}.csv").write_text(f"Index\n{indices}\n")
    argv = ("--cfg", "configs/digits_compare.yaml", "--opts", "RUN_DIR", tmp_path)
    options = ("MODEL.ARCH", "pixels", "COMPARE.LIST", elsewhere)
    script(COMPARE, *argv, *options, "USL.SEEDS", "[1, 2]", "COMPARE.BUDGETS", "[20, 40]")
    out = capsys.readouterr().out
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 6
    for row in rows:
        if (row["selector"], row["budget"], row["seed"]) == ("USL", "40", "2"):
            # The same by hand, from what was saved.
            from sklearn.datasets import load_digits
            from sklearn.linear_model import LogisticRegression

            labels = load_digits().target
            picks = np.load(tmp_path / "selected_indices_40_2.npy")
            train = np.load(tmp_path / "memory_feats_list.npy")[picks]
            probe = LogisticRegression(C=10, max_iter=1000).fit(train, labels[picks])
            score = probe.score(np.load(tmp_path / "test_feats.npy"), labels[1437:])
            assert float(row["accuracy"]) == pytest.approx(100 * score)
    means = {}
    for row in rows:
        means.setdefault((row["selector"], row["budget"]), []).append(float(row["accuracy"]))
    names = (
        "random",
        "stratified",
        "k-means centres",
        "densest per cluster",
        "USL",
        "listed mine",
    )
    for selector in names:
        line = next(line for line in out.splitlines() if line.startswith(selector))
        for budget in ("20", "40"):
            pair = means[selector, budget]
            assert f"{np.mean(pair):.1f} ± {np.std(pair, ddof=1):.1f}" in line
    assert re.search(r"weighted 20-NN accuracy of the features: 95\.0", out)
    assert "What the choice was worth" in (tmp_path / "report.html").read_text()
    kept = (tmp_path / "lists" / "40" / "digits_USL_seed2.csv").read_text().split()
    picks = np.load(tmp_path / "selected_indices_40_2.npy")
    assert kept == ["Index", *map(str, picks.tolist())]
    with pytest.raises(
        InputError, match="unknown COMPARE.SELECTORS 'freesel'; choose some of random, s"
    ):
        script(COMPARE, *argv, *options, "COMPARE.SELECTORS", "[usl, freesel]")
    with pytest.raises(InputError, match="COMPARE.SELECTORS is .'usl', 'usl'.; choose some of ran"):
        script(COMPARE, *argv, *options, "COMPARE.SELECTORS", "[usl, usl]")
    with pytest.raises(InputError, match="has 40 picks, and the budget is 41"):
        script(COMPARE, *argv, *options, "COMPARE.BUDGETS", "[41]", "COMPARE.LIST",
               tmp_path / "40" / "digits_mine_seed1.csv")  # fmt: skip


@pytest.mark.slow
def test_other_selectors(tmp_path, script, capsys):
    names = ["kmeans-plusplus", "kmeans-best", "typiclust", "k-centre", "d2"]
    script(
        COMPARE, "--cfg", "configs/digits_compare.yaml", "--opts", "RUN_DIR", tmp_path,
        "MODEL.ARCH", "pixels", "USL.SEEDS", "[1]", "COMPARE.BUDGETS", "[30]",
        "COMPARE.SELECTORS", str(names),
    )  # fmt: skip
    out = capsys.readouterr().out
    for title in (
        "best k-means centres",
        "TypiClust",
        "k-centre greedy",
        "D2 sampling",
    ):
        assert title in out
    # What was kept and shown is the last one's.
    assert "D2 sampling, seed 1" in (tmp_path / "report.html").read_text()
    kept = (tmp_path / "lists" / "30" / "digits_D2-sampling_seed1.csv").read_text().split()
    assert kept[1:] == list(map(str, np.load(tmp_path / "selected_indices_30_1.npy").tolist()))
