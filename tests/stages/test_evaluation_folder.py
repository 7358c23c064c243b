"""FixMatch and the CIFAR fine-tuning on image files, and FixMatch's own flags end to end."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from commands import FINETUNE, FIXMATCH
from helpers import ROOT, rows_of

from usl import InputError
from usl.checkpoints import read_checkpoint
from usl.encoders.checkpoints import save_encoder
from usl.encoders.registry import new_network

pytestmark = pytest.mark.slow
FOLDER = ("DATASET.NAME", "folder", "DATASET.IMAGE_SIZE", 32, "DATALOADER.WORKERS", 1)


def fixmatch(root, run, *more):
    return (
        "--cfg", "configs/cifar10_usl_fixmatch.yaml", "--opts", *FOLDER, "DATASET.ROOT_DIR", root,
        "DATASET.TRANSFORM_NAME", "imagenet", "RUN_DIR", run, "MODEL.DEPTH", 10, "MODEL.WIDTH", 1,
        "DATALOADER.BATCH_SIZE", 4, "FIXMATCH.MU", 2, "STEPS", 6, "FIXMATCH.EVAL_STEPS", 2,
        "FIXMATCH.SEEDS", "[1]", "FIXMATCH.LABELED_INDICES_PATH", "slice1",
        "FIXMATCH.NUM_LABELED", 8, *more,
    )  # fmt: skip


def test_fixmatch_on_a_folder_is_the_same_whatever_is_kept_in_memory(
    small_folder, script, tmp_path
):
    for cache in (0, 1):
        run = tmp_path / str(cache)
        script(FIXMATCH, *fixmatch(small_folder, run, "DATALOADER.CACHE_GB", cache))
        (row,) = rows_of(run)
        assert (row["dataset"], row["budget"], row["selector"]) == ("folder", "8", "stratified")
    one, two = (torch.load(tmp_path / c / "seed1" / "checkpoint.pth")["model"] for c in "01")
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("arch", ["SmallResNet", "timm/test_resnet", "SimCLRv2"])
@pytest.mark.parametrize("stage", [FINETUNE, FIXMATCH])
def test_pretrained_networks_of_any_kind_on_a_folder(small_folder, script, tmp_path, arch, stage):
    path = tmp_path / "r14_0.125x_sk0.pth"
    torch.manual_seed(0)
    network = new_network(arch, 2, 10, cld=False, side=32, size="r14_0.125x_sk0")
    save_encoder(path, network, cld=False)
    start = {k.split(".", 1)[1]: v for k, v in network.state_dict().items() if "head" not in k}
    own = ("MODEL.ARCH", arch, "MODEL.PRETRAIN_PATH", path, "DATASET.TRANSFORM_NAME",
           "imagenet" if arch == "SmallResNet" else "")  # fmt: skip
    if arch == "SimCLRv2":
        start = {k: v for k, v in network.resnet.state_dict().items()}
    run = tmp_path / "run"
    if stage == FIXMATCH:
        script(FIXMATCH, *fixmatch(small_folder, run, *own))
    else:
        script(
            FINETUNE, "--opts", *FOLDER, "DATASET.ROOT_DIR", small_folder, "RUN_DIR", run, *own,
            "MODEL.USE_CLD", False, "FINETUNE.LABELED_INDICES_PATH", "slice1",
            "FINETUNE.NUM_LABELED", 8, "FINETUNE.SEEDS", "[1]", "FINETUNE.REPEAT_DATA", 2,
            "EPOCHS", 1, "DATALOADER.BATCH_SIZE", 8, "AUGMENT.CROP", 0.5,
        )  # fmt: skip
    assert len(rows_of(run)) == 1
    weights = torch.load(run / "seed1" / "checkpoint.pth")["model"]
    moved = [
        not torch.equal(weights[f"backbone.{name}"], value)
        for name, value in start.items()
        if name.endswith("weight")
    ]
    # Fine-tuning leaves the pretrained weights as they are, FixMatch trains them all.
    assert moved and (all(moved) if stage == FIXMATCH else not any(moved))


def test_fixmatch_by_the_flags_of_the_original(cifar, script, tmp_path, monkeypatch):
    folder = tmp_path / "indices" / "cifar10"
    folder.mkdir(parents=True)
    np.save(folder / "mine_0.3.npy", np.arange(20, 32))
    small = ("--opts", "DATASET.ROOT_DIR", cifar, "MODEL.DEPTH", 10, "MODEL.WIDTH", 1)

    def words(out, *more):
        return (
            "--dataset", "cifar10", "--num-labeled", 12, "--arch", "wideresnet", "--batch-size", 4,
            "--mu", 2, "--lr", 0.03, "--expand-labels", "--seed", 5, "--total-steps", 6,
            "--eval-step", 2, "--out", tmp_path / out,
            "--get-labeled-inds-method", tmp_path / "mine_0.3", *more, *small,
        )  # fmt: skip

    script(FIXMATCH, *words("whole"))
    (row,) = rows_of(tmp_path / "whole")
    assert (row["list"], row["budget"], row["seed"]) == (str(folder / "mine_0.3.npy"), "12", "5")
    # Stopped early, off the tests, and taken up again from FixMatch-pytorch's file.
    script(FIXMATCH, *words("half", "--early-stop", 3))
    path = tmp_path / "half" / "seed5" / "checkpoint.pth.tar"
    assert read_checkpoint(path)["scheduler"]["last_epoch"] == 3
    script(FIXMATCH, *words("on", "--resume", path))
    names = ("model", "ema_model")
    whole, on = (torch.load(tmp_path / r / "seed5" / "checkpoint.pth") for r in ("whole", "on"))
    assert all(torch.equal(whole[n][k], on[n][k]) for n in names for k in whole[n])
    assert whole["epoch"] == on["epoch"] == 3
    # Without what this project adds: as the original wrote it.
    old = {k: v for k, v in read_checkpoint(path).items() if k not in ("step", "metrics", "random")}
    torch.save(old | {"best_acc": 99.5}, tmp_path / "old.pth.tar")
    script(FIXMATCH, *words("old", "--resume", tmp_path / "old.pth.tar"))
    old = torch.load(tmp_path / "old" / "seed5" / "checkpoint.pth")
    assert all(torch.equal(whole["model"][k], old["model"][k]) for k in whole["model"])
    metrics = pd.read_csv(tmp_path / "old" / "seed5" / "metrics.csv")
    assert metrics["step"].tolist() == [4, 6]
    # A better one came out before.
    assert read_checkpoint(tmp_path / "old" / "seed5" / "checkpoint.pth.tar")["best_acc"] == 99.5


def test_fixmatch_in_many_processes_as_the_original_starts_them(cifar, tmp_path):
    command = (
        "-m torch.distributed.launch --nproc_per_node 2 ./train.py --dataset cifar10 --num-labeled "
        f"20 --arch wideresnet --batch-size 2 --lr 0.03 --expand-labels --seed 5 --out {tmp_path}/a"
        " --total-steps 2 --eval-step 2 --opts MODEL.DEPTH 10 MODEL.WIDTH 1 DATASET.ROOT_DIR "
        f"{cifar}"
    )
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=ROOT / "semisup-fixmatch-cifar",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = rows_of(tmp_path / "a")
    assert (row["selector"], row["budget"], row["seed"]) == ("stratified", "20", "5")
    assert torch.load(tmp_path / "a" / "seed5" / "checkpoint.pth")["step"] == 2


def test_photographs_that_nobody_sorted_and_answers_in_a_list(small_folder, script, tmp_path):
    root, answers = tmp_path / "photos", ["Index,file,LabelName"]
    (root / "train").mkdir(parents=True)
    (root / "val").symlink_to(small_folder / "val")
    for path in sorted((small_folder / "train").rglob("*.png")):
        name = f"{path.parent.name}{path.name}"
        (root / "train" / name).write_bytes(path.read_bytes())
        if path.name in ("2.png", "5.png"):
            index = len(list((root / "train").iterdir())) - 1
            answers.append(f"{index},{name},{path.parent.name}")
    (root / "answers.csv").write_text("\n".join(answers))
    words = ("FIXMATCH.LABELED_INDICES_PATH", root / "answers.csv")
    script(FIXMATCH, *fixmatch(root, tmp_path / "run", *words))
    (row,) = rows_of(tmp_path / "run")
    assert (row["budget"], row["list"]) == ("8", str(root / "answers.csv"))
    by_class = pd.read_csv(tmp_path / "run" / "per_class.csv")
    assert by_class["class"].tolist() == list("abcd")


def test_images_that_cannot_be_tested(small_folder, script, tmp_path):
    with pytest.raises(InputError, match="images without labels have no test images; choose anoth"):
        script(FIXMATCH, *fixmatch(small_folder, tmp_path / "run", "DATASET.NAME", "images"))


@pytest.mark.parametrize("cache", [-1, "inf", "nan"])
def test_memory_that_is_none(small_folder, script, tmp_path, cache):
    with pytest.raises(InputError, match="DATALOADER.CACHE_GB is .*; choose 0 or more"):
        script(FIXMATCH, *fixmatch(small_folder, tmp_path / "run", "DATALOADER.CACHE_GB", cache))
