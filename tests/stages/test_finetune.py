"""SimCLRv2-CLD fine-tuning: its settings, and its script from its folder."""

import csv
import pickle
import re

import numpy as np
import pytest
import torch
from commands import FINETUNE, finetuning
from helpers import (
    ROOT,
    kill_script,
    make_cifar,
    make_cld_checkpoint,
    preprocess,
    rows_of,
    run_script,
    settings,
    tiny_images,
    value,
)

from usl import InputError
from usl.augment.moco import MocoTransform
from usl.augment.randaugment import ScanTransform
from usl.data.datasets import open_dataset
from usl.stages.evaluation import mean_std
from usl.stages.finetune import finetune_defaults, transform_of

LIST = "FINETUNE.LABELED_INDICES_PATH"


def test_augmentation_by_transform():
    cfg, data = finetune_defaults(), tiny_images(3)

    def transform(name):
        cfg.DATASET.TRANSFORM_NAME = name
        return transform_of(cfg, preprocess(data, name))

    for name in ("CLD-cifar10", "CLD-cifar100", "fashion-mnist", "digits"):
        assert transform(name) == MocoTransform()
    cfg.AUGMENT.FLIP, cfg.AUGMENT.CROP, cfg.AUGMENT.BLUR = 0.0, 0.4, 0.1
    assert transform("digits") == MocoTransform(scale=(0.4, 1.0), flip=0.0, blur=0.1)
    mean, cifar100 = (0.4914, 0.4822, 0.4465), (0.5071, 0.4867, 0.4408)
    for name, fill in (
        ("FixMatch-cifar10", mean), ("SCAN-cifar10", mean),
        ("FixMatch-cifar100", cifar100), ("SCAN-cifar100", cifar100),
    ):  # fmt: skip
        assert transform(name) == ScanTransform(flip=0.0, operations=4, fill=fill)


def test_mean_and_spread():
    assert mean_std([76.123]) == "76.12"
    assert mean_std([70.0, 80.0]) == "75.00 ± 7.07"


# The original's defaults of this stage.
DEFAULTS = {
    "RUN_NAME": "", "SAVE_DIR": "saved", "SAVE_DIR_EXIST_OK": True, "RUN_DIR": "",
    "SKIP_SAVE": False, "OPTS_IN_RUN_NAME": False, "RECOMPUTE_ALL": True,
    "RECOMPUTE_NUM_DEP": True, "DATASET.NAME": "", "DATASET.ROOT_DIR": "../data",
    "DATASET.TRANSFORM_NAME": "", "DATALOADER.BATCH_SIZE": 128, "DATALOADER.WORKERS": 8,
    "MODEL.ARCH": "ResNet18", "MODEL.PRETRAIN_PATH": "", "MODEL.BACKBONE_DIM": 0,
    "MODEL.USE_CLD": True, "OPTIMIZER.NAME": "SGD", "OPTIMIZER.LR": 0.01,
    "OPTIMIZER.MOMENTUM": 0.9, "OPTIMIZER.NESTEROV": True, "OPTIMIZER.WEIGHT_DECAY": 0.0001,
    "EPOCHS": 5, "FINETUNE.LABELED_INDICES_PATH": "", "FINETUNE.FREEZE_BACKBONE": True,
    "FINETUNE.REPEAT_DATA": 100, "SCHEDULE": "constant", "WARMUP_EPOCHS": 0,
}  # fmt: skip


def test_the_originals_keys_and_defaults_stay():
    cfg = finetune_defaults()
    assert {key: value(cfg, key) for key in DEFAULTS} == DEFAULTS


def test_every_config_parses_and_states_its_command():
    paths = sorted((ROOT / "semisup-simclrv2-cld" / "configs").glob("*.yaml"))
    assert len(paths) >= 13
    for path in paths:
        assert path.stem.startswith(
            settings(FINETUNE, "--cfg", str(path)).RUN_NAME.removesuffix("_simclr")
        )
        assert f"\n#   python fine_tune.py --cfg configs/{path.name}\n" in path.read_text()


def test_a_yaml_written_for_the_original_works_unchanged(tmp_path):
    (tmp_path / "old.yaml").write_text(
        "RUN_NAME: 'cifar10_usl'\nRECOMPUTE_ALL: False\nDATASET:\n  NAME: cifar10\n"
        "  TRANSFORM_NAME: CLD-cifar10\nDATALOADER:\n  BATCH_SIZE: 128\nMODEL:\n  ARCH: ResNet18\n"
        "  USE_CLD: False\n  PRETRAIN_PATH: 'pretrained/x.pth'\nOPTIMIZER:\n  NAME: SGD\n  LR: 1\n"
        "FINETUNE:\n  LABELED_INDICES_PATH: '../selective_labeling/saved/a/b.npy'\n"
        "  REPEAT_DATA: 100\n"
    )
    cfg = settings(FINETUNE, "--cfg", str(tmp_path / "old.yaml"))
    assert str(ROOT / "selective_labeling/saved/a/b.npy") == cfg.FINETUNE.LABELED_INDICES_PATH
    assert cfg.OPTIMIZER.LR == 1.0 and not cfg.MODEL.USE_CLD
    with pytest.raises(InputError, match="--opts: SEED is a setting of another stage"):
        settings(FINETUNE, "--opts", "SEED", "3")


@pytest.fixture(scope="module")
def whole_cifar(tmp_path_factory):
    """CIFAR-10 files with as many made-up training images as real ones, and a CLD checkpoint."""
    root = make_cifar(tmp_path_factory.mktemp("cifar"), per_file=60)
    random = np.random.RandomState(0)
    for number in range(1, 6):
        labels = random.randint(10, size=10000)
        data = np.repeat(25 * labels.astype(np.uint8)[:, None], 3072, axis=1)
        content = {"data": data, "labels": labels.tolist()}
        path = root / "cifar-10-batches-py" / f"data_batch_{number}"
        path.write_bytes(pickle.dumps(content, protocol=2))
    make_cld_checkpoint(root / "cld.pth")
    return root


def test_a_published_list_on_files_in_cifars_format(whole_cifar, tmp_path):
    # The original README's command, a published list, and less of everything.
    config = ("--cfg", "semisup-simclrv2-cld/configs/cifar10_usl-t_finetune.yaml", "--opts")
    data = ("DATASET.ROOT_DIR", whole_cifar, "MODEL.PRETRAIN_PATH", whole_cifar / "cld.pth")
    less = ("FINETUNE.REPEAT_DATA", 2, "EPOCHS", 1, "DATALOADER.BATCH_SIZE", 16)
    run = tmp_path / "run"
    done = run_script(
        FINETUNE, *config, *data, LIST, "released/cifar10_usl-t.csv", "RUN_DIR", run, *less
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    name = "selective_labeling/released/cifar10_usl-t.csv"
    assert lines[0].startswith(f"seed 0, 40 labels of {name}: accuracy ")
    assert [line.split()[0] for line in lines[2:-1]] == [f"class-{i}" for i in range(10)]
    assert re.fullmatch(r"accuracy: \d+\.\d\d", lines[-1])
    with (run / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == ["dataset", "selector", "budget", "list", "seed", "accuracy", "time"]
    assert (row["dataset"], row["selector"], row["budget"]) == ("cifar10", "usl-t", "40")
    assert row["list"] == name and f"{float(row['accuracy']):.2f}" == lines[-1].split()[1]
    assert float(row["time"]) > 0
    # Made-up labels are not the published ones, and that is said.
    assert f"{name}: its class counts are not those published with it" in done.stderr
    report = (run / "report.html").read_text()
    assert "curve of accuracy" in report and "class-9" in report

    # Only the linear layer and the statistics are not the checkpoint's.
    before = torch.load(whole_cifar / "cld.pth")["model"]
    after = torch.load(run / "seed0" / "checkpoint.pth")["model"]
    assert after.pop("linear.weight").shape == (10, 512)
    assert after.pop("linear.bias").shape == (10,)
    for key, new in after.items():
        old = before[f"module.{key.removeprefix('backbone.')}"]
        assert torch.equal(old, new) is ("running" not in key and "num_b" not in key), key


def test_picks_that_do_not_exist_yet(whole_cifar, tmp_path):
    config = ("--cfg", "semisup-simclrv2-cld/configs/cifar10_usl-t_finetune.yaml", "--opts")
    picks = ROOT / "selective_labeling/saved/cifar10_usl-t/selected_indices_40_77.npy"
    data = ("DATASET.ROOT_DIR", whole_cifar, "MODEL.PRETRAIN_PATH", whole_cifar / "cld.pth")
    done = run_script(FINETUNE, *config, *data, "RUN_DIR", tmp_path / "run", LIST, picks)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: there is no list of labelled images (FINETUNE.LABELED_")
    assert done.stderr.count("\n") == 1 and str(picks) in done.stderr
    assert "selective_labeling/usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml" in done.stderr
    assert "released/cifar10_usl-t.csv" in done.stderr


@pytest.mark.slow
def test_seeds(encoder, script, tmp_path, capsys):
    script(FINETUNE, *finetuning(encoder, tmp_path / "run"))
    lines = capsys.readouterr().out.splitlines()
    rows = rows_of(tmp_path / "run")
    assert [(r["seed"], r["list"], r["selector"]) for r in rows] == [
        ("1", "slice1", "stratified"),
        ("2", "slice2", "stratified"),
    ]
    accuracies = [float(r["accuracy"]) for r in rows]
    assert lines[-1] == f"accuracy: {mean_std(accuracies)} over 2 seeds"
    # The mean over classes, weighted by their test images, is the accuracy.
    counts = np.bincount(open_dataset("digits", "", "test").labels)
    shown = [float(line.split()[1]) for line in lines[-11:-1]]
    assert np.average(shown, weights=counts) == pytest.approx(np.mean(accuracies), abs=0.02)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "mean ± std" in report and mean_std(accuracies) in report

    # A seed more: what is finished is not trained again.
    old = (tmp_path / "run" / "seed2" / "checkpoint.pth").stat().st_mtime_ns
    script(FINETUNE, *finetuning(encoder, tmp_path / "run", "FINETUNE.SEEDS", "[2, 3]"))
    more = rows_of(tmp_path / "run")
    assert more[0] == rows[1] and more[1]["seed"] == "3"
    assert (tmp_path / "run" / "seed2" / "checkpoint.pth").stat().st_mtime_ns == old
    # And alone it comes to the same.
    script(FINETUNE, *finetuning(encoder, tmp_path / "alone", "FINETUNE.SEEDS", "[3]"))
    assert rows_of(tmp_path / "alone")[0]["accuracy"] == more[1]["accuracy"]


@pytest.mark.slow
def test_answers_of_a_person_replace_the_labels(encoder, script, tmp_path, capsys):
    labels = open_dataset("digits", "").labels
    path = tmp_path / "mine.csv"
    path.write_text("Index,Label\n" + "".join(f"{i},{9 - labels[i]}\n" for i in range(40)))
    options = (
        "FINETUNE.SEEDS", "[0]", "FINETUNE.FREEZE_BACKBONE", False, "OPTIMIZER.LR", 0.1,
        "EPOCHS", 10, "AUGMENT.CROP", 0.9,
    )  # fmt: skip
    script(FINETUNE, *finetuning(encoder, tmp_path / "run", *options, LIST, path))
    (row,) = rows_of(tmp_path / "run")
    mine = float(row["accuracy"])
    assert (row["list"], row["selector"], row["budget"]) == (str(path), "mine", "40")
    np.save(tmp_path / "theirs.npy", np.arange(40))
    theirs = (LIST, tmp_path / "theirs.npy", "RESUME", "none")
    script(FINETUNE, *finetuning(encoder, tmp_path / "run", *options, *theirs))
    assert float(rows_of(tmp_path / "run")[0]["accuracy"]) > 40 > mine + 20


@pytest.mark.slow
def test_few_labels_are_drawn_more_often(encoder, script, tmp_path, capsys):
    options = ("FINETUNE.NUM_LABELED", 3, "FINETUNE.REPEAT_DATA", 1, "FINETUNE.SEEDS", "[0]")
    script(FINETUNE, *finetuning(encoder, tmp_path / "run", *options))
    out = capsys.readouterr()
    assert "seed 0, 3 labels of slice0: accuracy" in out.out
    assert re.search(r"slice0: no image is labelled (\d, ){6}\d\n", out.err)
    metrics = (tmp_path / "run" / "seed0" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in metrics[1:]] == ["1", "2", "3"]


def test_nothing_is_written_with_skip_save(encoder, script, tmp_path, capsys):
    script(
        FINETUNE, *finetuning(encoder, tmp_path / "run", "SKIP_SAVE", True, "MODEL.USE_CLD", True)
    )
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith(" over 2 seeds")


@pytest.mark.slow
def test_killed_and_resumed(encoder, tmp_path):
    options = ("CHECKPOINT_STEPS", 1, "EPOCHS", 8, "FINETUNE.FREEZE_BACKBONE", False)
    whole = run_script(FINETUNE, *finetuning(encoder, tmp_path / "whole", *options))
    assert whole.returncode == 0, whole.stderr
    argv = finetuning(encoder, tmp_path / "run", *options)
    path = tmp_path / "run" / "seed2" / "checkpoint.pth"
    kill_script(FINETUNE, *argv, when=path.exists)
    assert torch.load(path)["step"] < 16

    rest = run_script(FINETUNE, *argv)
    assert rest.returncode == 0, rest.stderr
    assert "training goes on from step" in rest.stderr
    for seed in (1, 2):
        mine, theirs = (
            torch.load(tmp_path / run / f"seed{seed}" / "checkpoint.pth")
            for run in ("run", "whole")
        )
        assert mine["step"] == theirs["step"] == 16
        for name, weights in theirs["model"].items():
            assert torch.equal(weights, mine["model"][name]), name
    keep = ("seed", "accuracy", "list")
    found, expected = (rows_of(tmp_path / run) for run in ("run", "whole"))
    assert [[r[k] for k in keep] for r in found] == [[r[k] for k in keep] for r in expected]
    assert rest.stdout.splitlines()[-1] == whole.stdout.splitlines()[-1]

    # Other labels do not go on from there.
    done = run_script(FINETUNE, *argv, LIST, "slice4")
    assert done.returncode == 2 and "is of other settings: labelled was " in done.stderr
