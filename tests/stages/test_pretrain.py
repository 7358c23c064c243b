"""Pretraining by its script, and selection with what it wrote."""

import re

import numpy as np
import pytest
import torch
from commands import CIFAR, SIMCLR, SIMCLRV2
from helpers import ROOT, printed, run_script

from usl import InputError


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


@pytest.mark.slow
def test_a_small_simclrv2_from_pretraining_to_picks_and_accuracy(tmp_path, script, capsys):
    size = ("MODEL.SIZE", "r14_0.0625x_sk1")
    script(
        SIMCLR, "--cfg", "configs/digits_simclr.yaml", "--opts", "MODEL.ARCH", "SimCLRv2", *size,
        "DATASET.TRANSFORM_NAME", "", "MAX_STEPS", 1, "DATALOADER.BATCH_SIZE", 64,
        "RUN_DIR", tmp_path / "encoder",
    )  # fmt: skip
    encoder = tmp_path / "encoder" / "encoder.pth"
    assert set(torch.load(encoder)) == {"resnet", "head"}
    own = ("MODEL.ARCH", "SimCLRv2", *size, "MODEL.PRETRAIN_PATH", encoder,
           "DATASET.TRANSFORM_NAME", "")  # fmt: skip
    script(
        CIFAR, "--cfg", "configs/digits_usl.yaml", "--opts", *own, "USL.SEEDS", "[1]",
        "RUN_DIR", tmp_path / "picks",
    )  # fmt: skip
    picks = tmp_path / "picks" / "selected_indices_40_1.npy"
    script(
        SIMCLRV2, "--cfg", ROOT / "configs/digits.yaml", "--max-steps", 2, "--seed", 1,
        "--trainindex_x", picks, "--opts", *own, "DATALOADER.BATCH_SIZE", 40,
        "RUN_DIR", tmp_path / "run",
    )  # fmt: skip
    assert "40 labels of " in capsys.readouterr().out
    weights = torch.load(tmp_path / "run" / "seed1" / "checkpoint.pth")["model"]
    assert weights["linear.weight"].shape == (10, 128)


def test_a_checkpoint_of_another_network(tmp_path, script):
    torch.save({"model": {"a": torch.ones(1)}, "optimizer": {}}, tmp_path / "other.pth")
    options = ("RUN_DIR", tmp_path / "run", "RESUME", tmp_path / "other.pth")
    with pytest.raises(InputError, match="other.pth is of another network; missing: backbone"):
        script(SIMCLR, "--cfg", "configs/digits_simclr.yaml", "--opts", *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weight", [-1, "nan"])
def test_weights_that_are_none(tmp_path, script, weight):
    options = ("RUN_DIR", tmp_path / "run", "GROUP.WEIGHT", weight)
    with pytest.raises(InputError, match="GROUP.WEIGHT is .*; choose 0 or more"):
        script(SIMCLR, "--cfg", "configs/digits_simclr.yaml", "--opts", *options)
    assert not (tmp_path / "run").exists()
