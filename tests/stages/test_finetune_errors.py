"""Bad settings and inputs of fine-tuning."""

import re

import pytest
import torch
from commands import FINETUNE, finetuning

from usl import InputError

LIST = "FINETUNE.LABELED_INDICES_PATH"
BAD = {
    (LIST, ""): "FINETUNE.LABELED_INDICES_PATH is empty; give a .npy or .csv of labelled images",
    (LIST, "slice"): "there is no list of labelled images",
    (LIST, "nowhere.csv"): "there is no list of labelled images (FINETUNE.LABELED_INDICES_PATH)",
    (LIST, "released/x.csv"): "or choose one of those there: cifar100_random",
    (LIST, "released/cifar10_usl-t.csv"): "and digits has the images 0 to 1436; give a list of",
    ("FINETUNE.NUM_LABELED", 0): "a budget of 0 picks from 1437 images",
    ("FINETUNE.NUM_LABELED", 1438): "a budget of 1438 picks from 1437 images",
    ("FINETUNE.REPEAT_DATA", 0): "FINETUNE.REPEAT_DATA is 0; choose at least 1",
    ("FINETUNE.SEEDS", "[]"): "FINETUNE.SEEDS is empty; give at least one seed",
    ("FINETUNE.SEEDS", "[1, 1]"): "FINETUNE.SEEDS has a seed twice",
    ("DATALOADER.BATCH_SIZE", 0): "DATALOADER.BATCH_SIZE is 0; choose 2 to 280",
    ("DATALOADER.BATCH_SIZE", 1): "DATALOADER.BATCH_SIZE is 1; choose 2 to 280",
    ("EPOCHS", 0): "EPOCHS is 0 and STEPS 0; choose at least 1",
    ("SCHEDULE", "zigzag"): "unknown SCHEDULE 'zigzag'",
    ("PRECISION", "int4"): "unknown PRECISION 'int4'",
    (
        "RESUME",
        "maybe.pth",
    ): "there is no checkpoint (RESUME); put maybe.pth in one of the places tried",
    ("OPTIMIZER.NAME", "Adam"): "unknown OPTIMIZER.NAME 'Adam'; choose SGD",
    ("OPTIMIZER.LR", 0): "OPTIMIZER.LR is 0.0; choose a positive number",
    ("OPTIMIZER.MOMENTUM", 0): "OPTIMIZER.NESTEROV needs a MOMENTUM",
    ("OPTIMIZER.MOMENTUM", -1): "OPTIMIZER.MOMENTUM is -1.0; choose 0 or more",
    ("OPTIMIZER.WEIGHT_DECAY", "nan"): "OPTIMIZER.WEIGHT_DECAY is nan; choose 0 or more",
    ("ACCUMULATE", 0): "ACCUMULATE is 0; choose at least 1",
    (LIST, "slice4294967296"): "LABELED_INDICES_PATH has 4294967296; give numbers from 0 to",
    ("AUGMENT.FLIP", 2): "AUGMENT.FLIP is 2.0; choose 0 to 1",
    ("AUGMENT.CROP", 0): "choose 0 < low ≤ high ≤ 1",
    ("DATASET.TRANSFORM_NAME", "x"): "unknown DATASET.TRANSFORM_NAME 'x'",
    ("DATASET.NAME", "mnist"): "unknown DATASET.NAME 'mnist'",
    ("MODEL.PRETRAIN_PATH", ""): "MODEL.PRETRAIN_PATH is empty; SmallResNet needs a checkpoint",
    ("MODEL.PRETRAIN_PATH", "x.pth"): "there is no checkpoint (MODEL.PRETRAIN_PATH)",
    ("MODEL.ARCH", "ResNet18"): "is of another network",
    ("MODEL.ARCH", "pixels"): "MODEL.ARCH is pixels; choose an encoder that is a network",
    ("MODEL.BACKBONE_DIM", 512): "MODEL.BACKBONE_DIM is 512, SmallResNet has 64",
    ("DEVICE", "abacus"): "DEVICE abacus is not on this machine",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(map(str, options)))
def test_bad_settings(encoder, script, tmp_path, options):
    with pytest.raises(InputError) as error:
        script(FINETUNE, *finetuning(encoder, tmp_path / "run", *options))
    assert BAD[options] in str(error.value)
    assert not (tmp_path / "run").exists() and "\n" not in str(error.value)


LISTS = {
    "out of range": ("Index\n1437\n", "has the index 1437, and digits has the images 0 to 1436"),
    "twice": ("Index\n3\n3\n", "has the index 3 more than once"),
    "outside the classes": ("Index,Label\n3,10\n", "line 2: the label '10' is no class"),
    "empty": ("Index\n", "lists no image"),
    "without its column": ("Idx\n3\n", "has no column Index, only Idx"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_bad_lists(encoder, script, tmp_path, kind):
    content, message = LISTS[kind]
    (tmp_path / "list.csv").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        script(FINETUNE, *finetuning(encoder, tmp_path / "run", LIST, tmp_path / "list.csv"))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite(encoder, script, tmp_path):
    with pytest.raises(InputError, match="the loss is .* before step .*; lower OPTIMIZER.LR"):
        script(FINETUNE, *finetuning(encoder, tmp_path / "run", "OPTIMIZER.LR", 1e30, "EPOCHS", 20))


def test_a_checkpoint_of_something_else(script, tmp_path):
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="x.pth is of another network; missing: conv1.weight"):
        script(FINETUNE, *finetuning(tmp_path / "x.pth", tmp_path / "run"))


def test_what_was_trained_is_looked_at_before_anything_begins(encoder, script, tmp_path, capsys):
    run, one = tmp_path / "run", ("EPOCHS", 1, "FINETUNE.SEEDS", "[1]")
    script(FINETUNE, *finetuning(encoder, run, *one))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    both = ("EPOCHS", 1, "FINETUNE.SEEDS", "[2, 1]")
    capsys.readouterr()
    for options, message in (
        ((*both, "OPTIMIZER.LR", 0.02), "seed1/checkpoint.pth is of other settings: OPTIMIZER.LR"),
        (("EVAL_ONLY", True), "EVAL_ONLY, and there is no .*seed2/checkpoint.pth; train first"),
    ):
        with pytest.raises(InputError, match=message):
            script(FINETUNE, *finetuning(encoder, run, *both, *options))
    assert not capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
