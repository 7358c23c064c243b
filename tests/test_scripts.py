"""Every script as a person runs it, from its own folder."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import oracle
import pytest
from conftest import ROOT, STAGE, make_cifar, make_cld_checkpoint, run_script

from usl import InputError

SMALL = ("USL.KNN_K", 10, "USL.NUM_SELECTED_SAMPLES", 8, "USL.SEEDS", "[1, 2]")


def printed(text):
    """The indices that a script printed, by seed."""
    found = re.findall(r"seed (\d+): (\d+) picks\n(?:class counts.*\n)?indices: (\[.*\])", text)
    picks = {int(seed): json.loads(indices) for seed, _, indices in found}
    assert all(len(picks[int(seed)]) == int(count) for seed, count, _ in found)
    return picks


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with made-up CIFAR-10 and CIFAR-100 files and a checkpoint in the CLD layout."""
    root = tmp_path_factory.mktemp("cifar")
    make_cifar(root)
    make_cifar(root, classes=100)
    make_cld_checkpoint(root / "cld.pth")
    return root


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
    done = run_script("usl-cifar.py", *config, *cifar_options(cifar, run))
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
    command = [sys.executable, "usl-cifar.py", *map(str, argv)]
    process = subprocess.Popen(command, cwd=STAGE, stderr=subprocess.DEVNULL)
    shards = run / "memory_feats_list.partial"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("0*.npy"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    left = {p.name: p.stat().st_mtime_ns for p in shards.glob("0*.npy")}
    assert 2 <= len(left) < 7 and not (run / "memory_feats_list.npy").exists()

    done = run_script("usl-cifar.py", *argv)
    assert done.returncode == 0, done.stderr
    assert f"features: {len(left)} of 7 shards are there already" in done.stderr
    assert not shards.exists()
    arrays = sorted(p.name for p in clean[0].glob("*.npy"))
    assert sorted(p.name for p in run.glob("*.npy")) == arrays
    for name in arrays:
        assert (run / name).read_bytes() == (clean[0] / name).read_bytes(), name


def test_shuffled_labels_change_nothing(cifar, clean, tmp_path, script, capsys):
    make_cifar(tmp_path)
    import pickle

    for path in (tmp_path / "cifar-10-batches-py").glob("data_batch_*"):
        content = pickle.loads(path.read_bytes())
        content["labels"] = content["labels"][::-1]
        path.write_bytes(pickle.dumps(content, protocol=2))
    options = (*cifar_options(cifar, tmp_path / "run"), "DATASET.ROOT_DIR", tmp_path)
    script("usl-cifar.py", "--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *options)
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
    script("usl-cifar.py", *argv, *options)
    out = capsys.readouterr()
    assert printed(out.out)[1] == printed(clean[1].stdout)[1]
    assert np.load(run / "selected_indices_8_1.npy.released").tolist() == list(range(8))
    for text in ("using memory_feats_list.npy", "using d_knns_10.npy", "using cluster_labels_8_1"):
        assert text in out.err
    assert "selected_indices_8_1.npy differs from what was computed here; kept as" in out.err


def test_what_still_holds_is_reused(clean, cifar, script, capsys, tmp_path):
    argv = ("--cfg", "configs/cifar10_usl.yaml", "--opts", *SMALL, *cifar_options(cifar, tmp_path))
    keep = ("RECOMPUTE_ALL", False)
    script("usl-cifar.py", *argv, *keep)
    capsys.readouterr()
    script("usl-cifar.py", *argv, *keep, "USL.NUM_SELECTED_SAMPLES", 5)
    log = capsys.readouterr().err
    assert "reused memory_feats_list.npy" in log and "reused d_knns_10.npy" in log
    assert "reused cluster_labels" not in log


def test_usl_cifar100_on_files_in_cifars_format(cifar, tmp_path, script, capsys):
    options = ("USL.KNN_K", 20, "USL.NUM_SELECTED_SAMPLES", 150, "USL.SEEDS", "[1]")
    config = ("--cfg", "configs/cifar100_usl.yaml", "--opts", *options)
    script("usl-cifar.py", *config, *cifar_options(cifar, tmp_path / "run"))
    assert len(set(printed(capsys.readouterr().out)[1])) == 150


def test_spare_cluster_of_the_published_budget(tmp_path, script):
    x = np.random.RandomState(0).randn(3000, 4).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    options = ("FEATURES.PATH", tmp_path / "x.npy", "RUN_DIR", tmp_path / "run")
    opts = ("USL.NUM_SELECTED_SAMPLES", 2500, "USL.KNN_K", 5, "USL.REG.NITERS", 2)
    script("usl-features.py", "--cfg", "configs/features_usl.yaml", "--opts", *options, *opts)
    assert len(np.load(tmp_path / "run" / "centroids_2500_1.npy")) == 2501
    assert len(set(np.load(tmp_path / "run" / "selected_indices_2500_1.npy").tolist())) == 2500


def test_random_cifar(cifar, tmp_path):
    argv = ("--cfg", "configs/cifar10_random.yaml", "--opts", "DATASET.ROOT_DIR", cifar)
    done = run_script("random-cifar.py", *argv, "RUN_DIR", tmp_path)
    assert done.returncode == 0, done.stderr
    for seed, picks in printed(done.stdout).items():
        expected = np.random.RandomState(seed).choice(200, 40, replace=False).tolist()
        assert picks == expected == np.load(tmp_path / f"selected_indices_40_{seed}.npy").tolist()
    assert (tmp_path / "report.html").exists()


def test_usl_features(tmp_path):
    x = np.random.RandomState(3).randn(70, 12)
    np.save(tmp_path / "x.npy", x)
    # A path on the command line starts at the current folder.
    here = os.path.relpath(tmp_path / "x.npy", STAGE)
    argv = ("--cfg", "configs/features_usl.yaml", "--opts", "FEATURES.PATH", here)
    opts = ("RUN_DIR", tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 9, "USL.REG.HORIZON_DIST", 30)
    done = run_script("usl-features.py", *argv, *opts)
    assert done.returncode == 0, done.stderr
    expected = oracle.usl(x, 9, seed=1, k=20, horizon=30.0, iterations=200)[0]
    assert printed(done.stdout)[1] == expected.tolist()


def test_usl_features_in_the_other_form_and_normalised(tmp_path, script, capsys):
    x = np.random.RandomState(3).randn(70, 12)
    np.save(tmp_path / "x.npy", x)
    opts = ("FEATURES.PATH", tmp_path / "x.npy", "FEATURES.NORMALIZE", True, "SKIP_SAVE", True)
    form = ("USL.REG.HORIZON", "num", "USL.REG.HORIZON_NUM", 3, "USL.NUM_SELECTED_SAMPLES", 9)
    script("usl-features.py", "--cfg", "configs/features_usl.yaml", "--opts", *opts, *form)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    expected = oracle.usl(unit, 9, seed=1, k=20, form="num", horizon=3, iterations=200)[0]
    assert printed(capsys.readouterr().out)[1] == expected.tolist()


def test_compare_on_digits(tmp_path, script, capsys):
    elsewhere = tmp_path / "{budget}" / "digits_mine_seed{seed}.csv"
    for seed, budget in ((1, 20), (1, 40), (2, 20), (2, 40)):
        (tmp_path / str(budget)).mkdir(exist_ok=True)
        indices = "\n".join(map(str, range(seed, 10 * budget, 10)))
        (tmp_path / str(budget) / f"digits_mine_seed{seed}.csv").write_text(f"Index\n{indices}\n")
    argv = ("--cfg", "configs/digits_compare.yaml", "--opts", "RUN_DIR", tmp_path)
    options = ("MODEL.ARCH", "pixels", "COMPARE.LIST", elsewhere)
    script("compare.py", *argv, *options, "USL.SEEDS", "[1, 2]", "COMPARE.BUDGETS", "[20, 40]")
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
    with pytest.raises(InputError, match="has 40 picks, and the budget is 41"):
        script("compare.py", *argv, *options, "COMPARE.BUDGETS", "[41]", "COMPARE.LIST",
               tmp_path / "40" / "digits_mine_seed1.csv")  # fmt: skip


def features_file(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return ("FEATURES.PATH", tmp_path / "x.npy")


GOOD = np.random.RandomState(0).randn(30, 4)
BAD_FEATURES = {
    "none": (None, "there is no file of features (FEATURES.PATH); put x.npy in"),
    "nan": (np.where(np.eye(30, 4), np.nan, GOOD), "have NaN or infinite values, first in row 0"),
    "one dimension": (GOOD[0], "have shape (4,); give a table of (images, dimensions)"),
    "three dimensions": (GOOD[None], "have shape (1, 30, 4)"),
    "texts": (np.array([["a"]]), "holds <U1 values; give a .npy of shape"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features(tmp_path, script, name):
    array, message = BAD_FEATURES[name]
    options = ("FEATURES.PATH", tmp_path / "x.npy")
    if array is not None:
        options = features_file(tmp_path, array)
    with pytest.raises(InputError) as error:
        script("usl-features.py", "--opts", *options, "RUN_DIR", tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USL.NUM_SELECTED_SAMPLES", 0), "a budget of 0 picks from 30 images; choose 1 to 30"),
        (("USL.NUM_SELECTED_SAMPLES", -1), "a budget of -1 picks"),
        (("USL.NUM_SELECTED_SAMPLES", 31), "a budget of 31 picks"),
        (("USL.KNN_K", 31), "USL.KNN_K is 31; choose 1 to 30, the number of images"),
        (("USL.KNN_K", 0), "USL.KNN_K is 0"),
        (("USL.REG.HORIZON", "far"), "unknown horizon 'far'; choose dist or num"),
        (("KNN.BACKEND", "abacus"), "unknown kNN backend 'abacus'"),
        (("USL.K_MEANS_NITERS", 0), "USL.K_MEANS_NITERS is 0; choose at least 1"),
        (("USL.SEEDS", "[]"), "USL.SEEDS is empty; give at least one seed"),
        (("USL.SEEDS", "[3, -1]"), "USL.SEEDS has -1; give numbers from 0 to 4294967295"),
        (("DEVICE", "abacus"), "DEVICE abacus is not on this machine"),
        (("MODEL.ARCH", "x"), "MODEL is a setting of another stage"),
    ],
)
def test_bad_settings_of_features(tmp_path, script, options, message):
    given = (*features_file(tmp_path, GOOD), "RUN_DIR", tmp_path / "run")
    start = ("USL.NUM_SELECTED_SAMPLES", 5, "USL.KNN_K", 5)
    with pytest.raises(InputError) as error:
        script("usl-features.py", "--opts", *given, *start, *options)
    assert message in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DATASET.NAME", "mnist"), "unknown DATASET.NAME 'mnist'; choose one of cifar10"),
        (("MODEL.ARCH", "AlexNet"), "unknown MODEL.ARCH 'AlexNet'; choose one of ResNet18, Small"),
        (("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", ""), "MODEL.PRETRAIN_PATH is empty"),
        (
            ("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", "nowhere.pth"),
            "there is no checkpoint (MODEL.PRETRAIN_PATH); put nowhere.pth in one of the places",
        ),
        (
            ("MODEL.ARCH", "ResNet18", "DATASET.TRANSFORM_NAME", "x"),
            "unknown DATASET.TRANSFORM_NAME 'x'; choose one of CLD-cifar10",
        ),
        (("USL.NUM_SELECTED_SAMPLES", 1438), "a budget of 1438 picks from 1437 images"),
        (("DATALOADER.BATCH_SIZE", 0), "DATALOADER.BATCH_SIZE is 0; choose at least 1"),
    ],
)
def test_bad_settings_of_images(tmp_path, script, options, message):
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", "RUN_DIR", tmp_path / "run")
    argv = (*argv, "MODEL.ARCH", "pixels")
    with pytest.raises(InputError) as error:
        script("usl-cifar.py", *argv, *options)
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    for name in ("usl-cifar.py", "usl-features.py", "random-cifar.py", "compare.py"):
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
        script("usl-cifar.py", *argv)


def test_helps():
    done = run_script("usl-features.py", "--help")
    assert done.returncode == 0 and "--opts" in done.stdout and "FEATURES.PATH" in done.stdout


def test_pretraining_then_selection_on_digits(tmp_path):
    encoder = tmp_path / "simclr"
    argv = ["--cfg", "configs/digits_simclr.yaml", "--opts", "RUN_DIR", encoder, "EPOCHS", 2]
    command = [sys.executable, "pretrain.py", *map(str, argv)]
    folder = ROOT / "selfsup-simclr-cld"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"knn_accuracy/backbone: \d\d", done.stdout)
    for name in ("encoder.pth", "checkpoint.pth", "metrics.csv", "report.html", "config.yaml"):
        assert (encoder / name).exists(), name
    assert "curve of loss" in (encoder / "report.html").read_text()

    options = ("MODEL.PRETRAIN_PATH", encoder / "encoder.pth", "RUN_DIR", tmp_path / "usl")
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", *options, "USL.SEEDS", "[1]")
    done = run_script("usl-cifar.py", *argv)
    assert done.returncode == 0, done.stderr
    features = np.load(tmp_path / "usl" / "memory_feats_list.npy")
    assert features.shape == (1437, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert len(set(printed(done.stdout)[1])) == 40

    # Other settings do not go on from this checkpoint, and the one that differs is named.
    command += ["OPTIMIZER.LR", "0.5"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert "checkpoint.pth is of other settings: OPTIMIZER.LR was 0.12 and is 0.5" in done.stderr
    assert len([x for x in done.stderr.splitlines() if x.startswith("error: ")]) == 1


def test_an_encoder_that_is_not_there_yet(tmp_path, script):
    path = ROOT / "selfsup-simclr-cld" / "saved" / "nothing" / "encoder.pth"
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", "MODEL.PRETRAIN_PATH", path)
    with pytest.raises(InputError, match="or run the script in selfsup-simclr-cld that makes it"):
        script("usl-cifar.py", *argv)


def test_readme_commands_name_scripts_and_configs_that_exist():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"python ([\w-]+\.py) --cfg (configs/[\w.-]+)", text)
    assert len(commands) >= 5
    for name, config in commands:
        (folder,) = {path.parent for path in ROOT.glob(f"*/{name}")}
        assert (folder / config).exists(), (name, config)
