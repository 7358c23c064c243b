"""The comparison of selectors."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import COMPARE
from helpers import ROOT, rows_of

from usl import InputError
from usl.geometry.neighbors.exact import find_neighbors
from usl.metrics import weighted_knn
from usl.ranking import rank_table
from usl.selectors.registry import SELECTORS, timed
from usl.stages import cells
from usl.stages.compare import open_benches
from usl.stages.table import settings_of

TRAINED = ("COMPARE.TRAIN.FIXMATCH", "digits_usl_fixmatch.yaml")
DIGITS = ("--cfg", "configs/digits_compare.yaml", "--opts", "MODEL.ARCH", "pixels")


def read_list(folder, name):
    return [int(index) for index in (folder / "lists" / name).read_text().split()[1:]]


@pytest.mark.slow
def test_compare_on_digits(tmp_path, script, capsys):
    elsewhere = tmp_path / "{budget}" / "digits_mine_seed{seed}.csv"
    for seed, budget in ((1, 20), (1, 40), (2, 20), (2, 40)):
        (tmp_path / str(budget)).mkdir(exist_ok=True)
        indices = "\n".join(map(str, range(seed, 10 * budget, 10)))
        (tmp_path / str(budget) / f"digits_mine_seed{seed}.csv").write_text(f"Index\n{indices}\n")
    argv = (*DIGITS, "RUN_DIR", tmp_path, "COMPARE.LISTS", f"['{elsewhere}']")
    script(COMPARE, *argv, "USL.SEEDS", "[1, 2]", "COMPARE.BUDGETS", "[20, 40]")
    out = capsys.readouterr().out
    rows = rows_of(tmp_path)
    assert len(rows) == 2 * 2 * 6
    for row in rows:
        if (row["selector"], row["budget"], row["seed"]) == ("USL", "40", "2"):
            # The same by hand, from what was saved.
            from sklearn.datasets import load_digits
            from sklearn.linear_model import LogisticRegression

            labels = load_digits().target
            picks = read_list(tmp_path, "40/digits_USL_seed2.csv")
            train = np.load(tmp_path / "memory_feats_list.npy")[picks]
            tests = np.load(tmp_path / "test_feats.npy")
            probe = LogisticRegression(C=10, max_iter=1000).fit(train, labels[picks])
            assert float(row["accuracy"]) == pytest.approx(100 * probe.score(tests, labels[1437:]))
            known, answers = torch.from_numpy(labels[picks]), torch.from_numpy(labels[1437:])
            vote = weighted_knn(torch.from_numpy(train), known, torch.from_numpy(tests), answers)
            assert float(row["knn"]) == pytest.approx(vote)
            assert int(row["classes"]) == len(set(labels[picks])) and float(row["seconds"]) > 0
        if row["selector"] == "listed mine":
            seed, budget = int(row["seed"]), int(row["budget"])
            listed = read_list(tmp_path, f"{budget}/digits_listed-mine_seed{seed}.csv")
            assert listed == list(range(seed, 10 * budget, 10)) and not row["seconds"]
    means = {}
    for row in rows:
        means.setdefault((row["selector"], row["budget"]), []).append(float(row["accuracy"]))
    titles = [
        "random", "stratified", "k-means centres", "densest per cluster", "USL", "listed mine",
    ]  # fmt: skip
    for selector in titles:
        line = next(line for line in out.splitlines() if line.startswith(selector))
        for budget in ("20", "40"):
            pair = means[selector, budget]
            assert f"{np.mean(pair):.1f} ± {np.std(pair, ddof=1):.1f}" in line
    assert re.search(r"digits: weighted 20-NN accuracy of the features: 95\.0", out)
    # Those that choose, without labels, are ranked.
    ranks = pd.read_csv(tmp_path / "ranks.csv", index_col="selector")
    found = pd.read_csv(tmp_path / "results.csv")
    expected = rank_table(
        found[found["selector"].isin(set(titles) - {"stratified", "listed mine"})]
    )
    pd.testing.assert_frame_equal(ranks, expected, check_exact=False)
    page = (tmp_path / "report.html").read_text()
    for text in ("Which selector leads", "digits: classes with a pick", "20 labels"):
        assert text in page
    assert "<svg" in (tmp_path / "accuracy.svg").read_text()
    with pytest.raises(InputError, match="has 40 picks, and the budget is 41"):
        script(COMPARE, *argv, "COMPARE.BUDGETS", "[41]", "COMPARE.LISTS",
               f"['{tmp_path}/40/digits_mine_seed1.csv']")  # fmt: skip


def test_a_stopped_comparison_goes_on(tmp_path, script, monkeypatch):
    options = (
        "COMPARE.SELECTORS", "[random, kmeans-centres, k-centre, usl]", "USL.SEEDS", "[1, 2]",
        "COMPARE.BUDGETS", "[4, 8]", "USL.KNN_K", 0,
    )  # fmt: skip
    script(COMPARE, *DIGITS, "RUN_DIR", tmp_path / "whole", *options)
    done, probe = [], cells.linear_probe

    def stopping(*given):
        done.append(len(given[0]))
        if len(done) == 6:
            raise KeyboardInterrupt
        return probe(*given)

    monkeypatch.setattr(cells, "linear_probe", stopping)
    with pytest.raises(KeyboardInterrupt):
        script(COMPARE, *DIGITS, "RUN_DIR", tmp_path / "two", *options)
    assert not (tmp_path / "two" / "results.csv").exists()
    script(COMPARE, *DIGITS, "RUN_DIR", tmp_path / "two", *options)
    # What was there is not tested again; k-centre greedy draws nothing and is chosen once a budget.
    assert len(done) == 1 + 2 * (1 + 2 * 3) and done[:6] == [4] * 6
    one, two = (pd.read_csv(tmp_path / x / "results.csv") for x in ("whole", "two"))
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    # A finished one is made anew, unless that is not wanted; then only what is new is.
    done.clear()
    kept = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False, "COMPARE.BUDGETS", "[4, 8, 9]")
    monkeypatch.setattr(cells, "linear_probe", lambda *given: done.append(len(given[0])) or 1.0)
    script(COMPARE, *DIGITS, "RUN_DIR", tmp_path / "two", *options, *kept)
    assert done == [9] * 7
    # By 0 the density is that of a quarter of a mean cluster of each budget.
    x = np.load(tmp_path / "two" / "memory_feats_list.npy")
    for k in (89, 44, 39):
        density = np.load(tmp_path / "two" / f"density_{k}.npy")
        np.testing.assert_array_equal(density, find_neighbors(x, k).density.numpy())


@pytest.fixture
def pools(tmp_path):
    """Two YAML files: digits by all their pixels, and by another number of neighbours."""
    base = f"BASE: {ROOT}/selective_labeling/configs/digits_compare.yaml\nMODEL:\n  ARCH: pixels\n"
    (tmp_path / "one.yaml").write_text(base)
    (tmp_path / "two.yaml").write_text(base + "USL:\n  KNN_K: 5\n  SEEDS: [7]\n")
    return [str(tmp_path / name) for name in ("one.yaml", "two.yaml")]


def study(pools, folder, *options):
    return (
        "--opts", "COMPARE.POOLS", str(pools), "RUN_DIR", folder, "USL.SEEDS", "[1, 2]",
        "COMPARE.BUDGETS", "[5]", "COMPARE.SELECTORS", "[random, usl]", *options,
    )  # fmt: skip


def test_several_pools(tmp_path, pools, script, capsys):
    folder = tmp_path / "study"
    script(COMPARE, *study(pools, folder))
    found = pd.read_csv(folder / "results.csv")
    assert found.groupby(["dataset", "selector"])["seed"].apply(list).tolist() == [[1, 2]] * 4
    assert set(found["dataset"]) == {"one", "two"}
    # Each as if it were alone.
    script(COMPARE, "--cfg", pools[1], *study([], tmp_path / "alone"))
    alone = pd.read_csv(tmp_path / "alone" / "results.csv")
    rows = found[found["dataset"] == "two"].reset_index(drop=True)
    names = ["dataset", "seconds"]
    pd.testing.assert_frame_equal(rows.drop(columns=names), alone.drop(columns=names))
    assert not rows["accuracy"].equals(found.loc[found["dataset"] == "one", "accuracy"])
    # Each has a record of its own; the log is one.
    for name, k in (("one", 20), ("two", 5)):
        record = json.loads((folder / name / "run.json").read_text())
        assert record["finished"] and record["config"]["USL"]["KNN_K"] == k
        assert record["config"]["USL"]["SEEDS"] == [1, 2] and f"density_{k}.npy" in record["arrays"]
        assert not (folder / name / "run.log").exists()
    assert "two: 5 labels, seed 2" in (folder / "run.log").read_text()
    whole = json.loads((folder / "run.json").read_text())
    assert whole["finished"] and {"one: features (train)", "two: neighbours"} <= set(
        whole["timings"]
    )
    assert "<td>two: neighbours</td>" in (folder / "report.html").read_text()
    out = capsys.readouterr().out
    assert out.index("one: accuracy of a linear probe") < out.index("two: accuracy of a linear")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("COMPARE.SELECTORS", "[usl, freesel]"),
         "unknown COMPARE.SELECTORS 'freesel'; choose some of random, stratified"),
        (("COMPARE.SELECTORS", "[usl, usl]"), "COMPARE.SELECTORS is .'usl', 'usl'.; choose some"),
        (("COMPARE.SELECTORS", "[stratified]"),
         "COMPARE.SELECTORS has none that chooses without labels; add one"),
        (("COMPARE.BUDGETS", "[5, 2000]"),
         "COMPARE.POOLS .*one.yaml: a budget of 2000 picks from 1437 images"),
        (("COMPARE.BUDGETS", "[]"), "one.yaml: COMPARE.BUDGETS is empty; give at least one"),
        (("USL.SEEDS", "[]"), "USL.SEEDS is empty; give at least one seed"),
        (("COMPARE.POOLS", "[nowhere.yaml]"), "there is no config nowhere.yaml; tried"),
        (("COMPARE.LISTS", "[x.csv]"), "COMPARE.LISTS is for each of COMPARE.POOLS to say, in its"),
        (("COMPARE.TRAIN.SEEDS", "[1, 3]", *TRAINED, "COMPARE.TRAIN.BUDGETS", "[5]"),
         "COMPARE.TRAIN.SEEDS has 3, which is not compared; choose some of 1, 2"),
        (("COMPARE.TRAIN.SELECTORS", "[rds]"),
         "unknown COMPARE.TRAIN.SELECTORS 'rds'; choose some of random, stratified"),
        (("COMPARE.TRAIN.SELECTORS", "[rdss]", *TRAINED, "COMPARE.TRAIN.BUDGETS", "[5]"),
         "COMPARE.TRAIN.SELECTORS has rdss, which is not compared; choose some of random, usl"),
        (TRAINED, "COMPARE.TRAIN.BUDGETS has 40, which is not compared; choose some of 5"),
        (("COMPARE.BUDGETS", "[5, 5]"), "COMPARE.BUDGETS is .5, 5.; give each once"),
        (("COMPARE.TRAIN.SELECTORS", "[usl, usl]"), "COMPARE.TRAIN.SELECTORS is .*; give each on"),
        (("COMPARE.TRAIN.SEEDS", "[]"), "COMPARE.TRAIN.SEEDS is empty; give at least one seed"),
        ((*TRAINED, "COMPARE.TRAIN.BUDGETS", "[5]", "SKIP_SAVE", True),
         "COMPARE.TRAIN needs the lists in RUN_DIR; leave SKIP_SAVE False"),
        (("COMPARE.TRAIN.FIXMATCH", "fashion-mnist_usl_fixmatch.yaml"),
         "fashion-mnist_usl_fixmatch.yaml is for fashion-mnist, and the picks are of digits; name"),
        (("USL.KNN_K", 7), "USL.KNN_K is for each of COMPARE.POOLS to say, in its YAML; remove it"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_anything_runs(tmp_path, pools, script, options, message):
    argv = study(pools, tmp_path / "study", *options)
    if "COMPARE.TRAIN.FIXMATCH" in options:
        argv = (*DIGITS, *study([], tmp_path / "study", *options)[1:])
    with pytest.raises(InputError, match=message):
        script(COMPARE, *argv)
    assert not (tmp_path / "study").exists()


def test_what_a_selection_depends_on(tmp_path, script, monkeypatch):
    """With all of it the same nothing is chosen anew; then whatever changes."""
    chosen = []
    monkeypatch.setattr(
        cells, "timed", lambda *given, seed: chosen.append(seed) or timed(*given, seed=seed)
    )
    kept = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False, "COMPARE.SELECTORS", "[usl]")

    def compare(*options):
        chosen.clear()
        script(COMPARE, *DIGITS, "RUN_DIR", tmp_path / "run", "USL.SEEDS", "[1]",
               "COMPARE.BUDGETS", "[6]", *kept, *options)  # fmt: skip
        return len(chosen)

    assert compare() == 1 and compare() == 0
    # Another backend finds the same neighbours.
    assert compare("KNN.BACKEND", "torch") == 0
    assert compare("USL.KNN_K", 7) == 1 and compare("USL.REG.W", 2.0) == 1
    assert compare("USL.K_MEANS_NITERS", 3) == 1
    usl = SELECTORS["usl"]
    monkeypatch.setitem(SELECTORS, "usl", replace(usl, version=usl.version + 1))
    assert compare() == 1 and compare() == 0
    # What lies there without a record is nobody's.
    (tmp_path / "run" / "run.json").unlink()
    np.save(tmp_path / "run" / "cells" / "6" / "usl_seed1_worth.npy", np.full(4, 77.0))
    assert compare() == 1
    assert float(rows_of(tmp_path / "run")[0]["accuracy"]) != 77


def test_pools_that_cannot_be_told_apart_or_opened(tmp_path, pools, script):
    (tmp_path / "other").mkdir()
    again = tmp_path / "other" / "one.yaml"
    again.write_text(
        "DATASET:\n  NAME: digits\n  TRANSFORM_NAME: digits\nMODEL:\n  ARCH: SmallResNet\n"
    )
    folder = tmp_path / "study"
    with pytest.raises(InputError, match="two files of one name: one, two, one; rename one"):
        script(COMPARE, *study([*pools, str(again)], folder))
    with pytest.raises(
        InputError, match="one.yaml: encoder SmallResNet needs a MODEL.PRETRAIN_PATH; give"
    ):
        script(COMPARE, *study([pools[1], str(again)], folder))
    with pytest.raises(InputError, match="one.yaml: there is no config nothing.yaml; tried"):
        again.write_text(
            f"BASE: {pools[0]}\nCOMPARE:\n  TRAIN:\n    BUDGETS: [5]\n    FIXMATCH: nothing.yaml\n"
        )
        script(COMPARE, *study([str(again)], folder))
    assert not folder.exists()


def test_trainings_are_known_by_their_inputs_wherever_the_repository_lies(tmp_path):
    for name in ("selective_labeling", "semisup-fixmatch-cifar", "configs"):
        left = shutil.ignore_patterns("saved", "data", "__pycache__", "released")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=left)
    encoder = tmp_path / "encoder.pth"
    config = tmp_path / "trained.yaml"
    config.write_text(
        f"BASE: {ROOT}/semisup-fixmatch-cifar/configs/{TRAINED[1]}\n"
        f"MODEL:\n  PRETRAIN_PATH: {encoder}\n"
    )

    def settings(root):
        cfg = settings_of(str(root / COMPARE), "digits_compare.yaml")
        cfg.defrost()
        cfg.MODEL.ARCH, cfg.COMPARE.TRAIN.FIXMATCH = "pixels", str(config)
        (bench,) = open_benches(cfg, str(root / COMPARE), settings_of)
        return bench.trainings["FixMatch"].settings

    with pytest.raises(InputError, match="there is no file .MODEL.PRETRAIN_PATH.; put encoder.pth"):
        settings(ROOT)
    encoder.write_bytes(b"weights")
    known = settings(ROOT)
    assert settings(tmp_path) == known
    encoder.write_bytes(b"others")
    assert settings(ROOT) != known


@pytest.mark.slow
def test_training_on_the_picks(tmp_path, script, capsys):
    """By FixMatch from nothing, for two steps."""
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "DATASET:\n  NAME: digits\n  TRANSFORM_NAME: digits\nMODEL:\n  ARCH: SmallResNet\n"
        "  WIDTH: 4\n  DEPTH: 10\nSTEPS: 2\nDATALOADER:\n  BATCH_SIZE: 8\n"
        "FIXMATCH:\n  EVAL_STEPS: 1\n"
    )
    options = (
        *DIGITS, "RUN_DIR", tmp_path / "run", "USL.SEEDS", "[1, 2]", "COMPARE.BUDGETS", "[10, 20]",
        "COMPARE.SELECTORS", "[random, kmeans-centres, usl]", "COMPARE.TRAIN.FIXMATCH", config,
        "COMPARE.TRAIN.SEEDS", "[2]", "COMPARE.TRAIN.BUDGETS", "[10]",
        "COMPARE.TRAIN.SELECTORS", "[kmeans-centres]",
    )  # fmt: skip
    script(COMPARE, *options)
    with (tmp_path / "run" / "trainings.csv").open() as file:
        rows = list(csv.DictReader(file))
    (row,) = rows
    assert (row["training"], row["selector"]) == ("FixMatch", "k-means centres")
    assert (row["budget"], row["seed"]) == ("10", "2")
    (folder,) = (tmp_path / "run" / "trainings").iterdir()
    assert folder.name.startswith("FixMatch-k-means-centres-10-")
    (own,) = rows_of(folder)
    assert float(row["accuracy"]) == float(own["accuracy"])
    assert own["list"].endswith("run/lists/10/digits_k-means-centres_seed2.csv")
    assert "digits: accuracy of FixMatch, %" in capsys.readouterr().out
    assert "digits: accuracy of FixMatch" in (tmp_path / "run" / "report.html").read_text()
    script(COMPARE, *options, "COMPARE.TRAIN.BUDGETS", "[]")
    assert not (tmp_path / "run" / "trainings.csv").exists()
    config.write_text(config.read_text().replace("STEPS: 2", "STEPS: 0"))
    with pytest.raises(
        InputError, match="FixMatch failed, as it says above: python .*train.py --c"
    ):
        script(COMPARE, *options)
