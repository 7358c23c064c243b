"""Flags of the original's command lines, and what they fill."""

import shlex

import pytest
from commands import FIXMATCH, SIMCLRV2
from helpers import ROOT, settings, value

from usl import InputError
from usl.stages.table import STAGES, read_settings

IMAGENET100 = (
    '--lr 0.16 --seed 0 --name-to-save "usl-t_0.3p_imagenet100" --trainindex_x "picks.csv" -j 16 '
    "--batch-size 256 --eval-freq 48 --epochs 48 --warmup-epochs 0 --weight-decay 0.0001 "
    "--dist-url 'tcp://localhost:10005' --multiprocessing-distributed --world-size 1 --rank 0 "
    "--pretrain pretrained/r50_1x_sk0.pth --roll-data 20 --amp-opt-level O1 --roll-data 40 "
    "--num-classes 100 --freeze-backbone /data/imagenet100"
)
IMAGENET = (
    '--lr 0.16 --seed 0 --name-to-save "usl-t_0.2p_imagenet" --trainindex_x "picks.csv" -j 16 '
    "--batch-size 512 --eval-freq 6 --epochs 12 --warmup-epochs 0 --weight-decay 0 "
    "--dist-url 'tcp://localhost:10001' --multiprocessing-distributed --world-size 1 --rank 0 "
    "--pretrain pretrained/r50_1x_sk0.pth --multi-epochs-data-loader --amp-opt-level O1 "
    "--no-lr-decay /data/imagenet"
)
# What the two YAML files say and the flags do not, and what is only of how a run is started.
APART = {"DIST", "RUN_DIR", "DATASET", "MODEL.NUM_CLASSES", "FINETUNE.LABELED_INDICES_PATH"}


@pytest.mark.parametrize(
    ("words", "config"),
    [(IMAGENET100, "imagenet100_usl-t_0.3.yaml"), (IMAGENET, "imagenet_usl-t_0.2.yaml")],
)
def test_the_two_commands_are_the_two_configs(words, config, monkeypatch):
    monkeypatch.chdir(ROOT / "semisup-simclrv2")
    flags = settings(SIMCLRV2, *shlex.split(words))
    file = settings(SIMCLRV2, "--cfg", config)

    def leaves(tree, prefix=""):
        for key, inside in tree.items():
            name = f"{prefix}{key}"
            if name in APART:
                continue
            if hasattr(inside, "items"):
                yield from leaves(inside, f"{name}.")
            else:
                yield name, inside

    assert dict(leaves(flags)) == dict(leaves(file))
    assert words.rpartition(" ")[2] == flags.DATASET.ROOT_DIR
    assert str(ROOT / "semisup-simclrv2" / "picks.csv") == flags.FINETUNE.LABELED_INDICES_PATH
    assert (flags.DIST.SPAWN, flags.DIST.NODES, flags.DIST.NODE) == (True, 1, 0)
    # ImageNet's flags say no number of classes: those that there are.
    assert (100 if "100" in config else 0) == flags.MODEL.NUM_CLASSES


def test_the_rest_of_the_recipe():
    cfg = settings(
        SIMCLRV2, "--max-steps", 7, "--start-epoch", 2, "--momentum", 0.8, "--dist-backend", "gloo",
        "--evaluate", "--resume", "a.pth.tar", "--use-checkpoint", "--no-syncbn", "--skip-save",
        "-p", 3, "--use-persistent-workers", "--warmup-epochs", 4,
    )  # fmt: skip
    expected = {
        "MAX_STEPS": 7, "START_EPOCH": 2, "OPTIMIZER.MOMENTUM": 0.8, "DIST.BACKEND": "gloo",
        "EVAL_ONLY": True, "MODEL.RECOMPUTE": True, "MODEL.SYNC_BN": False, "SKIP_SAVE": True,
        "PRINT_FREQ": 3, "WARMUP_EPOCHS": 4, "FINETUNE.FREEZE_BACKBONE": False,
        "SCHEDULE": "epoch-cosine", "PRECISION": "float32", "DATASET.NAME": "imagenet",
    }  # fmt: skip
    assert {key: value(cfg, key) for key in expected} == expected
    assert cfg.RESUME.endswith("/a.pth.tar")


def test_flags_come_after_the_file_and_before_options():
    name = "imagenet100_usl-t_0.3.yaml"
    cfg = settings(SIMCLRV2, "--cfg", name, "--lr", 3, "--epochs", 5, "--opts", "EPOCHS", 6)
    assert (cfg.OPTIMIZER.LR, cfg.EPOCHS, cfg.MODEL.NUM_CLASSES) == (3.0, 6, 100)


def test_what_flags_cannot_mean(capsys):
    for words, message in (
        (
            ("--lr", "much"),
            "argument --lr/--learning-rate: invalid float value: 'much'; see --help",
        ),
        (("--amp-opt-level", "O3"), "invalid choice: 'O3' .choose from 'O0', 'O1', 'O2'"),
        (("--lars",), "unrecognized arguments: --lars; see --help"),
        (("a", "b"), "unrecognized arguments: b; see --help"),
    ):
        with pytest.raises(InputError, match=message):
            settings(SIMCLRV2, *words)
    with pytest.raises(SystemExit):
        settings(SIMCLRV2, "--help")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--roll-data ROLL_DATA [FINETUNE.REPEAT_DATA]" in shown
    assert "threads decode all along [nothing depends on it]" in shown


def fixmatch(*words):
    entry = STAGES[FIXMATCH]
    return read_settings(entry, [str(word) for word in words], script=str(ROOT / FIXMATCH))


def test_the_two_commands_of_fixmatch_pytorch(monkeypatch):
    monkeypatch.chdir(ROOT / "semisup-fixmatch-cifar")
    cfg = fixmatch(*shlex.split(
        "--dataset cifar10 --num-labeled 4000 --arch wideresnet --batch-size 64 --lr 0.03 "
        "--expand-labels --seed 5 --out results/cifar10@4000.5"
    ))  # fmt: skip
    expected = {
        "DATASET.NAME": "cifar10", "DATASET.TRANSFORM_NAME": "FixMatch-cifar10",
        "FIXMATCH.NUM_LABELED": 4000, "FIXMATCH.LABELED_INDICES_PATH": "slice{seed}",
        "FIXMATCH.SEEDS": [5], "MODEL.ARCH": "WideResNet", "MODEL.WIDTH": 2, "MODEL.DEPTH": 28,
        "DATALOADER.BATCH_SIZE": 64, "STEPS": 2**20, "OPTIMIZER.WEIGHT_DECAY": 5e-4,
        "RUN_DIR": str(ROOT / "semisup-fixmatch-cifar/results/cifar10@4000.5"),
    }  # fmt: skip
    assert {key: value(cfg, key) for key in expected} == expected
    # Four processes of 16 labelled images each, as torch.distributed.launch starts them.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "4")
    cfg = fixmatch(*shlex.split(
        "--local-rank=1 --dataset cifar100 --num-labeled 10000 --arch wideresnet --batch-size 16 "
        "--lr 0.03 --wdecay 0.001 --expand-labels --seed 5 --out results/cifar100@10000"
    ))  # fmt: skip
    expected = {
        "DATASET.TRANSFORM_NAME": "FixMatch-cifar100", "MODEL.WIDTH": 8,
        "DATALOADER.BATCH_SIZE": 64, "OPTIMIZER.WEIGHT_DECAY": 1e-3, "FIXMATCH.SEEDS": [5],
    }  # fmt: skip
    assert {key: value(cfg, key) for key in expected} == expected


def test_the_rest_of_fixmatchs_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = fixmatch(
        "--dataset", "cifar10", "--get-labeled-inds-method", "usl_1", "--resume", "old.pth.tar",
        "--total-steps", 100, "--eval-step", 10, "--early-stop", 50, "--start-epoch", 1,
        "--warmup", 20, "--nesterov", "--use-ema", "--ema-decay", 0.9, "--mu", 3, "--lambda-u", 0.5,
        "--T", 0.7, "--threshold", 0.8, "--amp", "--opt_level", "O2", "--no-progress",
        "--num-workers", 3, "--gpu-id", 2,
    )  # fmt: skip
    # FixMatch-pytorch's are floats.
    assert fixmatch("--warmup", "20.0").WARMUP_STEPS == 20
    with pytest.raises(InputError, match="WARMUP_STEPS is 1.5"):
        fixmatch("--warmup", "1.5")
    expected = {
        "FIXMATCH.LABELED_INDICES_PATH": str(tmp_path / "usl_1"), "STEPS": 100, "START_EPOCH": 1,
        "RESUME": str(tmp_path / "old.pth.tar"), "FIXMATCH.EVAL_STEPS": 10,
        "FIXMATCH.EARLY_STOP": 50, "WARMUP_STEPS": 20, "EMA_DECAY": 0.9, "FIXMATCH.MU": 3,
        "FIXMATCH.LAMBDA_U": 0.5, "FIXMATCH.TEMPERATURE": 0.7, "FIXMATCH.THRESHOLD": 0.8,
        "PRECISION": "auto", "DATALOADER.WORKERS": 3, "DEVICE": "cuda:2",
    }  # fmt: skip
    assert {key: value(cfg, key) for key in expected} == expected
    # Without words the original's YAML, with its published picks.
    assert fixmatch().FIXMATCH.LABELED_INDICES_PATH.endswith("released/cifar10_usl_seed{seed}.csv")
    with pytest.raises(InputError, match="invalid choice: 'resnext' .choose from 'wideresnet'"):
        fixmatch("--arch", "resnext")
