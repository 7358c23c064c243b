"""Bad settings, neighbours and checkpoints of a training of USL-T."""

import math
import runpy
import sys

import numpy as np
import pytest
import torch
from commands import (
    FOLDER_PRETRAIN,
    FOLDER_SELECT,
    MINE,
    PRETRAIN,
    SELECT,
    folder_pretraining,
    pretraining,
)
from helpers import ROOT

from usl import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")
BAD_NEIGHBORS = {
    "wrong N": (lambda n: n[:-1], r"has shape \(79, 21\), needed is \(80, any\); mine them from"),
    "too large": (
        lambda n: np.where(n == 79, 80, n),
        "has values from 0 to 80, needed are 0 to 79",
    ),
    "negative": (lambda n: n - 1, "has values from -1 to 78, needed are 0 to 79; mine them from"),
    "too few columns": (
        lambda n: n[:, :20],
        "USLT_PRETRAIN.NUM_NEIGHBORS is 20; choose 1 to 19, the columns of .*n.npy after the image",
    ),
    "one column": (lambda n: n[:, :1], "n.npy has no neighbours beside the image itself; mine"),
    "no column": (lambda n: n[:, :0], "n.npy has no neighbours beside the image itself; mine"),
    "another order": (
        lambda n: np.roll(n, 1, axis=0),
        "column 0 of .*n.npy is the image itself in 0 % of rows, so its images are in another ord",
    ),
    "one dimension": (lambda n: n[0], "has shape"),
    "floats": (lambda n: n.astype(np.float32), "holds float32 values; mine them from this data"),
    "not there": (None, "there is no file of neighbours .USLT_PRETRAIN.TOPK_NEIGHBORS_PATH.; put"),
}


@pytest.mark.parametrize("name", BAD_NEIGHBORS)
def test_neighbours_of_another_data_set(chained, tiny_cifar, tmp_path, script, name):
    change, message = BAD_NEIGHBORS[name]
    if change is not None:
        mined = np.load(chained[0] / "mined" / "topk-train-neighbors.npy")
        np.save(tmp_path / "n.npy", change(mined))
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(tiny_cifar, tmp_path / "n.npy", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 1), "NUM_SELECTED_SAMPLES is 1; choose at least 2"),
        (("USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 0), "NUM_SELECTED_SAMPLES is 0; choose at least 2"),
        (("OPTIMIZER.NAME", "SGD"), "OPTIMIZER.NAME is 'SGD'; USL-T trains with Adam"),
        (("USLT_PRETRAIN.NUM_NEIGHBORS", 0), "NUM_NEIGHBORS is 0; choose 1 to 20, the columns of"),
        (("USLT_PRETRAIN.NUM_NEIGHBORS", 21), "NUM_NEIGHBORS is 21; choose 1 to 20"),
        (("USLT_PRETRAIN.TOPK_NEIGHBORS_PATH", ""), "TOPK_NEIGHBORS_PATH is empty; give what mi"),
        (("USLT_PRETRAIN.SHARPEN_TEMPERATURE", 0), "SHARPEN_TEMPERATURE is 0.0; choose above 0"),
        (("USLT_PRETRAIN.CONFIDENCE_THRESHOLD", 1), "CONFIDENCE_THRESHOLD is 1.0; choose 0 to b"),
        (
            (
                "USLT_PRETRAIN.GLOBAL_START_EPOCH", 4,
                "USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH", 2,
            ),
            "so some epochs have no loss; choose an earlier one",
        ),
        (
            ("USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH", "nan"),
            "so some epochs have no loss; choose an earlier one",
        ),
        (("USLT_PRETRAIN.REASSIGN_AFTER_STEPS", -1), "REASSIGN_AFTER_STEPS is -1; choose 0 or"),
        (("USLT_PRETRAIN.COUNT_EMA_MIN_TH", -1), "COUNT_EMA_MIN_TH is -1 and COUNT_EMA_MAX_TH 10"),
        (("USLT_PRETRAIN.COUNT_EMA_MAX_TH", 99), "no smaller a MAX than MIN"),
        (("OPTIMIZER.WEIGHT_DECAY", -1), "OPTIMIZER.WEIGHT_DECAY is -1.0; choose 0 or more"),
        (("OPTIMIZER.WEIGHT_DECAY", "nan"), "OPTIMIZER.WEIGHT_DECAY is nan; choose 0 or more"),
        (("SEED", 10**20), "SEED has 10+; give numbers from 0 to 4294967295"),
        (("USLT_PRETRAIN.EMA_DECAY", 1), "EMA_DECAY is 1.0; choose 0 to below 1"),
        (("DATALOADER.BATCH_SIZE", 81), "DATALOADER.BATCH_SIZE is 81; choose 2 to 80, the images"),
        (("EPOCHS", 0), "EPOCHS is 0 and STEPS 0; choose at least 1"),
        (("OPTIMIZER.LR", -1), "OPTIMIZER.LR is -1.0; choose a positive number"),
        (("RESUME", "maybe"), "there is no checkpoint .RESUME.; put maybe in one of the places"),
        (("MODEL.ARCH", "pixels"), "MODEL.ARCH is pixels; choose an encoder that is a network"),
        (("MODEL.ARCH", "ResNet18"), "pretext.pth.tar is of another network; missing: "),
        (("MODEL.BACKBONE_DIM", 512), "MODEL.BACKBONE_DIM is 512, SmallResNet has 64"),
        (("MODEL.PRETRAIN_PATH", ""), "MODEL.PRETRAIN_PATH is empty; SmallResNet needs a chec"),
        (("MODEL.PRETRAIN_PATH", "no.pth"), "there is no checkpoint .MODEL.PRETRAIN_PATH.; put no"),
        (("DATASET.TRANSFORM_NAME", "x"), "unknown DATASET.TRANSFORM_NAME 'x'"),
        (("AUGMENT.FLIP", 2), "AUGMENT.FLIP is 2.0; choose 0 to 1"),
        (("USLT.HEAD_IN_USE", 0), "USLT is a setting of another stage"),
    ],
)  # fmt: skip
def test_bad_settings_of_training(chained, tiny_cifar, tmp_path, script, options, message):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def test_pretext_checkpoints_that_do_not_fit(chained, tiny_cifar, tmp_path, script):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    good = torch.load(tiny_cifar / "pretext.pth.tar")
    spoiled = good | {"module.backbone.conv1.weight": torch.full((2, 3, 3, 3), math.nan)}
    short = {k: v for k, v in good.items() if "layer3.0.bn1.weight" not in k}
    for content, message in (
        (spoiled, "not finite: conv1.weight"),
        (short, "of another network; missing: layer3.0.bn1.weight"),
        ({"weights": 1}, "of another network; missing: conv1.weight"),
        ([good], "holds a list, not a dict"),
    ):
        torch.save(content, tmp_path / "p.pth")
        with pytest.raises(InputError, match=message):
            argv = pretraining(tiny_cifar, neighbors, tmp_path / "run")
            script(PRETRAIN, *argv, "MODEL.PRETRAIN_PATH", tmp_path / "p.pth")
        assert not (tmp_path / "run").exists()


def test_too_few_images_for_the_heads(small_folder, tmp_path, script):
    argv = folder_pretraining(small_folder, tmp_path / "run")
    with pytest.raises(
        InputError, match="3 heads of 13 clusters start from 39 images, and there a"
    ):
        script(FOLDER_PRETRAIN, *argv, "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 13)
    assert not (tmp_path / "run").exists()


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    for name in (MINE, PRETRAIN, SELECT, FOLDER_PRETRAIN, FOLDER_SELECT):
        monkeypatch.setattr(sys, "argv", [name, "--opts", "RUN_DIR", str(tmp_path), "NO_SUCH", "1"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / name), run_name="__main__")
        out = capsys.readouterr()
        assert stop.value.code == 2 and out.out == "" and not list(tmp_path.iterdir())
        assert out.err.startswith("error: --opts: unknown key NO_SUCH; ")
        assert out.err.count("\n") == 1


def test_a_checkpoint_of_another_network_and_nothing_to_look_at(
    chained, tiny_cifar, tmp_path, script
):
    content = torch.load(chained[0] / "trained" / "checkpoint.pth")
    torch.save(content | {"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    for more, message in (
        (("RESUME", tmp_path / "other.pth"), "other.pth is of another network; missing: backbone"),
        (("EVAL_ONLY", True), "EVAL_ONLY, and there is no .*checkpoint.pth; train first, or set R"),
    ):
        with pytest.raises(InputError, match=message):
            script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path / "run"), *more)
        assert not (tmp_path / "run").exists()
