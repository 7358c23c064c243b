"""The scripts of USL and of random picks as a person runs them, from their folder."""

import os
import re

import numpy as np
import pytest
from commands import CIFAR, COMPARE, FEATURES, RANDOM
from helpers import ROOT, kill_script, make_cifar, printed, reverse_labels, run_script
from oracles import selection as oracle

from usl import InputError, Regularizer, select
from usl.stages.selection import clusters_for

SMALL = ("USL.KNN_K", 10, "USL.NUM_SELECTED_SAMPLES", 8, "USL.SEEDS", "[1, 2]")


def cifar_options(cifar, run):
    return (
        "DATASET.ROOT_DIR", cifar, "MODEL.PRETRAIN_PATH", cifar / "cld.pth", "RUN_DIR", run,
        "DATALOADER.BATCH_SIZE", 4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clean(cifar, tmp_path_factory):
    """One run of usl-cifar.py on CIFAR-format files that nothing disturbed."""
    run = tmp_path_factory.mktemp("clean") / "run"
    config = ("--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL)
    done = run_script(CIFAR, *config, *cifar_options(cifar, run))
    assert done.returncode == 0, done.stderr
    return run, done


def test_usl_cifar_on_files_in_cifars_format(clean):
    run, done = clean
    picks = printed(done.stdout)
    assert list(picks) == [1, 2]
    assert re.search(r"class counts: \[(\d+, ){9}\d+\], largest \d, smallest \d", done.stdout)
    features = np.load(run / "memory_feats_list.npy")
    assert features.shape == (200, 128) and features.dtype == np.float32
    for seed, indices in picks.items():
        saved = np.load(run / f"selected_indices_8_{seed}.npy")
        assert saved.dtype == np.int64 and saved.tolist() == indices
        expected, labels, _ = oracle.usl(features, 8, seed=seed, k=10, iterations=200)
        assert indices == expected.tolist()
        assert np.load(run / f"cluster_labels_8_{seed}.npy").tolist() == labels.tolist()
        assert np.load(run / f"centroids_8_{seed}.npy").shape == (8, 128)
    d, indices = oracle.neighbors(features, 10)
    assert np.load(run / "ind_knns_10.npy").tolist() == indices.tolist()
    assert np.array_equal(np.load(run / "d_knns_10.npy"), d.astype(np.float32))
    assert (run / "report.html").exists() and f"report: {run / 'report.html'}" in done.stdout


def test_killed_in_the_middle_of_features(cifar, clean, tmp_path):
    run = tmp_path / "run"
    argv = ["--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *cifar_options(cifar, run)]
    shards = run / "memory_feats_list.partial"
    kill_script(CIFAR, *argv, when=lambda: len(list(shards.glob("0*.json"))) >= 2)
    left = {p.name: p.stat().st_mtime_ns for p in shards.glob("0*.json")}
    assert 2 <= len(left) < 7 and not (run / "memory_feats_list.npy").exists()

    done = run_script(CIFAR, *argv)
    assert done.returncode == 0, done.stderr
    assert f"features: {len(left)} of 7 shards are there already" in done.stderr
    assert not shards.exists()
    arrays = sorted(p.name for p in clean[0].glob("*.npy"))
    assert sorted(p.name for p in run.glob("*.npy")) == arrays
    for name in arrays:
        assert (run / name).read_bytes() == (clean[0] / name).read_bytes(), name


def test_shuffled_labels_change_nothing(cifar, clean, tmp_path, script, capsys):
    make_cifar(tmp_path)
    reverse_labels(tmp_path)
    options = (*cifar_options(cifar, tmp_path / "run"), "DATASET.ROOT_DIR", tmp_path)
    script(CIFAR, "--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *options)
    out = capsys.readouterr().out
    assert printed(out) == printed(clean[1].stdout)
    assert re.findall("class counts.*", out) != re.findall("class counts.*", clean[1].stdout)


def test_released_intermediate_results_are_used(clean, cifar, tmp_path, script, capsys):
    run = tmp_path / "run"
    run.mkdir()
    for name in (
        "memory_feats_list",
        "d_knns_10",
        "ind_knns_10",
        "cluster_labels_8_1",
        "centroids_8_1",
    ):
        array = np.load(clean[0] / f"{name}.npy")
        np.save(run / f"{name}.npy", array.astype(np.float64) if name.startswith("mem") else array)
    np.save(run / "selected_indices_8_1.npy", np.arange(8))
    options = ("RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False, "USL.SEEDS", "[1]")
    argv = ("--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *cifar_options(cifar, run))
    script(CIFAR, *argv, *options)
    out = capsys.readouterr()
    assert printed(out.out)[1] == printed(clean[1].stdout)[1]
    assert np.load(run / "selected_indices_8_1.npy.released").tolist() == list(range(8))
    for text in ("using memory_feats_list.npy", "using d_knns_10.npy", "using cluster_labels_8_1"):
        assert text in out.err
    assert "selected_indices_8_1.npy differs from what was computed here; kept as" in out.err


def test_what_still_holds_is_reused(clean, cifar, script, capsys, tmp_path):
    argv = ("--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *cifar_options(cifar, tmp_path))
    keep = ("RECOMPUTE_ALL", False)
    script(CIFAR, *argv, *keep)
    capsys.readouterr()
    script(CIFAR, *argv, *keep, "USL.NUM_SELECTED_SAMPLES", 5)
    log = capsys.readouterr().err
    assert "reused memory_feats_list.npy" in log and "reused d_knns_10.npy" in log
    assert "reused cluster_labels" not in log


@pytest.mark.slow
def test_usl_cifar100_on_files_in_cifars_format(cifar, tmp_path, script, capsys):
    options = ("USL.KNN_K", 20, "USL.NUM_SELECTED_SAMPLES", 150, "USL.SEEDS", "[1]")
    config = ("--cfg", "configs/cifar100_usl.yaml", "--opts", *options)
    script(CIFAR, *config, *cifar_options(cifar, tmp_path / "run"))
    assert len(set(printed(capsys.readouterr().out)[1])) == 150


@pytest.mark.slow
def test_a_budget_of_2500_has_no_spare_cluster_on_data_that_it_was_not_published_for(
    tmp_path, script
):
    x = np.random.RandomState(0).randn(3000, 4).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ("FEATURES.PATH", tmp_path / "x.npy", "RUN_DIR", tmp_path / "run")
    opts = ("USL.NUM_SELECTED_SAMPLES", 2500, "USL.KNN_K", 5, "USL.REG.NITERS", 2)
    opts += ("USL.SEEDS", "[1]")
    script(FEATURES, "--cfg", "configs/features_usl.yaml", "--opts", *options, *opts)
    assert len(np.load(tmp_path / "run" / "centroids_2500_1.npy")) == 2500
    picks = np.load(tmp_path / "run" / "selected_indices_2500_1.npy")
    assert len(set(picks.tolist())) == 2500
    assert sorted(
        select(x, 2500, k=5, seed=1, regularizer=Regularizer(rounds=2)).picks.tolist()
    ) == sorted(picks)


@pytest.mark.parametrize(
    ("dataset", "budget", "clusters"),
    [("cifar10", 2500, 2501), ("cifar100", 2500, 2501), ("digits", 2500, 2500), ("", 2500, 2500),
     ("imagenet", 12820, 12900), ("cifar10", 12820, 12820), ("imagenet", 2500, 2500),
     ("cifar10", 40, 40)],
)  # fmt: skip
def test_spare_clusters_are_those_of_two_published_budgets(dataset, budget, clusters):
    assert clusters_for(budget, 50000, dataset) == clusters
    assert clusters_for(budget, budget, dataset) == budget


@pytest.mark.slow
def test_random_cifar(cifar, tmp_path):
    argv = ("--cfg", "configs/cifar10_random.yaml", "--opts", "DATASET.ROOT_DIR", cifar)
    done = run_script(RANDOM, *argv, "RUN_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    for seed, picks in printed(done.stdout).items():
        expected = np.random.RandomState(seed).choice(200, 40, replace=False).tolist()
        assert picks == expected == np.load(tmp_path / f"selected_indices_40_{seed}.npy").tolist()
    assert (tmp_path / "report.html").exists()


@pytest.mark.slow
def test_usl_features(tmp_path):
    x = np.random.RandomState(3).randn(70, 12)
    np.save(tmp_path / "x.npy", x)
    # A path on the command line starts at the current folder.
    here = os.path.relpath(tmp_path / "x.npy", ROOT / "selective_labeling")
    argv = ("--cfg", "configs/features_usl.yaml", "--opts", "FEATURES.PATH", here)
    opts = ("RUN_DIR", tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 9, "USL.REG.HORIZON_DIST", 30)
    done = run_script(FEATURES, *argv, *opts)
    assert done.returncode == 0, done.stderr
    expected = oracle.usl(x, 9, seed=1, k=20, horizon=30.0, iterations=200)[0]
    assert printed(done.stdout)[1] == expected.tolist()


def test_usl_features_in_the_other_form_and_normalised(tmp_path, script, capsys):
    x = np.random.RandomState(3).randn(70, 12)
    np.save(tmp_path / "x.npy", x)
    opts = ("FEATURES.PATH", tmp_path / "x.npy", "FEATURES.NORMALIZE", True, "SKIP_SAVE", True)
    form = ("USL.REG.HORIZON", "num", "USL.REG.HORIZON_NUM", 3, "USL.NUM_SELECTED_SAMPLES", 9)
    script(FEATURES, "--cfg", "configs/features_usl.yaml", "--opts", *opts, *form)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = oracle.usl(unit, 9, seed=1, k=20, form="num", horizon=3, iterations=200)[0]
    assert printed(capsys.readouterr().out)[1] == expected.tolist()


@pytest.mark.slow
def test_errors_are_one_line_and_exit_code_2(tmp_path):
    for name in (CIFAR, FEATURES, RANDOM, COMPARE):
        done = run_script(name, "--opts", "RUN_DIR", tmp_path, "NO_SUCH_KEY", 1)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("error: --opts: unknown key NO_SUCH_KEY; ")
        assert done.stderr.count("\n") == 1 and not list(tmp_path.iterdir())


def test_saved_arrays_that_do_not_fit(tmp_path, script):
    run = tmp_path / "run"
    run.mkdir()
    np.save(run / "d_knns.npy", np.zeros((5, 20), np.float32))
    np.save(run / "ind_knns.npy", np.zeros((5, 20), np.int64))
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", "RUN_DIR", run, "RECOMPUTE_ALL", False)
    argv = (*argv, "MODEL.ARCH", "pixels")
    with pytest.raises(InputError, match=r"d_knns.npy has shape \(5, 20\), needed is \(1437, 20\)"):
        script(CIFAR, *argv)


@pytest.mark.slow
def test_helps():
    done = run_script(FEATURES, "--help")
    assert done.returncode == 0 and "--opts" in done.stdout and "FEATURES.PATH" in done.stdout


def test_an_encoder_that_is_not_there_yet(tmp_path, script):
    path = ROOT / "selfsup-simclr-cld" / "saved" / "nothing" / "encoder.pth"
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", "MODEL.PRETRAIN_PATH", path)
    with pytest.raises(InputError, match="or run the script in selfsup-simclr-cld that makes it"):
        script(CIFAR, *argv)
