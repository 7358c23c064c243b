"""Pretraining by its script, and selection with what it wrote."""

import re

import numpy as np
import pytest
from commands import CIFAR, SIMCLR
from helpers import printed, run_script


@pytest.mark.slow
def test_pretraining_then_selection_on_digits(tmp_path):
    encoder = tmp_path / "simclr"
    pretraining = ("--cfg", "configs/digits_simclr.yaml", "--opts", "RUN_DIR", encoder, "EPOCHS", 2)
    done = run_script(SIMCLR, *pretraining)
    assert done.returncode == 0, done.stderr
    assert re.search(r"knn_accuracy/backbone: \d\d", done.stdout)
    for name in ("encoder.pth", "checkpoint.pth", "metrics.csv", "report.html", "config.yaml"):
        assert (encoder / name).exists(), name
    assert "curve of loss" in (encoder / "report.html").read_text()

    options = ("MODEL.PRETRAIN_PATH", encoder / "encoder.pth", "RUN_DIR", tmp_path / "usl")
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", *options, "USL.SEEDS", "[1]")
    done = run_script(CIFAR, *argv)
    assert done.returncode == 0, done.stderr
    features = np.load(tmp_path / "usl" / "memory_feats_list.npy")
    assert features.shape == (1437, 512)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert len(set(printed(done.stdout)[1])) == 40

    # Other settings do not go on from this checkpoint, and the one that differs is named.
    done = run_script(SIMCLR, *pretraining, "OPTIMIZER.LR", "0.5")
    assert done.returncode == 2 and done.stdout == ""
    assert "checkpoint.pth is of other settings: OPTIMIZER.LR was 0.12 and is 0.5" in done.stderr
    assert len([x for x in done.stderr.splitlines() if x.startswith("error: ")]) == 1
