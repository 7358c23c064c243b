"""FixMatch: its settings, and its script from its folder."""

import math
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from commands import FIXMATCH, fixmatching
from helpers import ROOT, rows_of, run_script, settings, tiny_images, value
from toys.fixmatch import LABELLED, LAYOUT, sgd, small

from usl import InputError, distributed
from usl.data.datasets import open_dataset
from usl.models.wideresnet import WideResNet
from usl.stages.evaluation import Outcome, mean_std
from usl.stages.fixmatch import fixmatch_defaults, network_of, trials_of
from usl.stages.training import sgd as stage_sgd

LIST, NUMBER = "FIXMATCH.LABELED_INDICES_PATH", "FIXMATCH.NUM_LABELED"
COLUMNS = [
    "dataset",
    "selector",
    "budget",
    "list",
    "seed",
    "accuracy",
    "time",
    "last20",
    "accuracy_raw",
]


def classes_like(count):
    """Images of so many classes."""
    images = tiny_images(10)
    return replace(images, classes=tuple(map(str, range(count))))


@pytest.mark.parametrize("network", [WideResNet(10, 1, 3), small()], ids=["wide", "small"])
def test_biases_and_batch_norm_do_not_decay(network):
    decaying, others = sgd(network, WEIGHT_DECAY=0.5).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.5, 0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    norms = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    found = [
        {names[id(parameter)] for parameter in group["params"]} for group in (decaying, others)
    ]
    without = {name for name in names.values() if name.endswith("bias")} | norms
    assert found[1] == without and found[0] == set(names.values()) - without
    assert len(norms) >= 5
    for group in (decaying, others):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.03, 0.9, True)
    assert len(stage_sgd(network, fixmatch_defaults().OPTIMIZER).param_groups) == 1


def test_the_schedule_by_hand():
    argv = ("--opts", LIST, "slice1", NUMBER, 5, "FIXMATCH.SEEDS", "[1]")
    (trial,) = trials_of(settings(FIXMATCH, *argv), tiny_images(500))
    plan, total = trial.plan, 2**20
    assert plan.total(trial.images) == total == plan.steps and trial.images == 1024 * 64 * 7
    expected = {0: 1.0, 1: 0.9999999999991412, 2**19: 0.7730104533627370, total: 0.1950903220161283}
    for step, factor in expected.items():
        assert plan.factor(step, total) == pytest.approx(factor, abs=1e-14)
        assert factor == pytest.approx(math.cos(7 * math.pi * step / (16 * total)), abs=1e-14)


# What method.md says of FixMatch.
METHOD = {
    "MODEL.ARCH": "WideResNet", "MODEL.DEPTH": 28, "DATALOADER.BATCH_SIZE": 64, "FIXMATCH.MU": 7,
    "FIXMATCH.THRESHOLD": 0.95, "FIXMATCH.TEMPERATURE": 1.0, "FIXMATCH.LAMBDA_U": 1.0,
    "OPTIMIZER.LR": 0.03, "OPTIMIZER.MOMENTUM": 0.9, "OPTIMIZER.NESTEROV": True,
    "SCHEDULE": "fixmatch", "STEPS": 2**20, "EMA_DECAY": 0.999, "FIXMATCH.EVAL_STEPS": 1024,
    "FIXMATCH.EARLY_STOP": 0,
}  # fmt: skip
EXPERIMENTS = {
    "cifar10_usl": (2, 5e-4, "cifar10_usl_seed{seed}", [1, 2, 5]),
    "cifar10_usl-t": (2, 5e-4, "cifar10_usl-t", [1, 2, 5]),
    "cifar10_random": (2, 5e-4, "cifar10_random_seed{seed}", [1, 2, 5]),
    "cifar100_usl": (8, 1e-3, "cifar100_usl", [5]),
    "cifar100_usl-t": (8, 1e-3, "cifar100_usl-t", [5]),
    "cifar100_random": (8, 1e-3, "cifar100_random", [5]),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_are_those_of_the_method(name):
    cfg = settings(FIXMATCH, "--cfg", f"configs/{name}_fixmatch.yaml")
    assert {key: value(cfg, key) for key in METHOD} == METHOD
    width, decay, picks, seeds = EXPERIMENTS[name]
    dataset = name.partition("_")[0]
    assert (dataset, f"FixMatch-{dataset}") == (cfg.DATASET.NAME, cfg.DATASET.TRANSFORM_NAME)
    assert (width, decay) == (cfg.MODEL.WIDTH, cfg.OPTIMIZER.WEIGHT_DECAY)
    assert seeds == cfg.FIXMATCH.SEEDS
    released = ROOT / "selective_labeling" / "released"
    assert str(released / f"{picks}.csv") == cfg.FIXMATCH.LABELED_INDICES_PATH
    for seed in seeds:
        assert (released / f"{picks}.csv".replace("{seed}", str(seed))).exists()


def test_every_config_parses_and_states_its_command():
    paths = sorted((ROOT / "semisup-fixmatch-cifar" / "configs").glob("*.yaml"))
    assert {path.stem.removesuffix("_fixmatch") for path in paths} >= {
        *EXPERIMENTS, "digits_usl", "digits_random", "fashion-mnist_usl", "fashion-mnist_random",
    }  # fmt: skip
    for path in paths:
        assert path.stem == settings(FIXMATCH, "--cfg", f"configs/{path.name}").RUN_NAME
        assert f"\n#   python train.py --cfg configs/{path.name}\n" in path.read_text()
    with pytest.raises(InputError, match="--opts: EPOCHS is a setting of another stage"):
        settings(FIXMATCH, "--opts", "EPOCHS", 3)


def test_the_mean_of_the_last_tests():
    metrics = pd.DataFrame({"accuracy": [90.0, 80, *range(20)]})
    result = Outcome(1, LABELLED, metrics, np.zeros(3), 1.0, last=20)
    assert result.recent == pytest.approx(9.5) and result.accuracy == 19
    few = Outcome(1, LABELLED, metrics[:3], np.zeros(3), 1.0, last=20)
    assert few.recent == pytest.approx(170 / 3)


@pytest.mark.slow
def test_the_script_on_files_in_cifars_format(cifar, script, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("FIXMATCH.SEEDS", "[1, 2]", "STEPS", 5)
    done = run_script(FIXMATCH, *fixmatching(cifar, run, *more))
    assert done.returncode == 0, done.stderr
    rows, lines = rows_of(run), done.stdout.splitlines()
    assert len(rows) == 2
    for row, seed in zip(rows, "12", strict=True):
        assert list(row) == COLUMNS
        assert [row[c] for c in COLUMNS[:5]] == [
            "cifar10", "stratified", "20", f"slice{seed}", seed,
        ]  # fmt: skip
        folder = run / f"seed{seed}"
        metrics = pd.read_csv(folder / "metrics.csv")
        assert metrics["step"].tolist() == [2, 4, 5]
        assert {"loss", "loss_labelled", "loss_unlabelled", "mask", "lr"} <= set(metrics)
        accuracy, mean = metrics["accuracy"].iloc[-1], metrics["accuracy"].mean()
        assert float(row["accuracy"]) == pytest.approx(accuracy)
        assert float(row["last20"]) == pytest.approx(mean, abs=1e-4)
        assert float(row["time"]) > 0
        start = f"seed {seed}, 20 labels of slice{seed}: accuracy {accuracy:.2f}"
        raw = metrics["accuracy/raw"].iloc[-1]
        assert float(row["accuracy_raw"]) == pytest.approx(raw)
        start += f" (mean of the last tests {mean:.2f}), {raw:.2f} without averaging"
        assert lines[int(seed) - 1].startswith(start)
        content = torch.load(folder / "checkpoint.pth.tar")
        assert set(content) == LAYOUT and content["epoch"] == 3
        WideResNet(10, 1, 10).load_state_dict(content["ema_state_dict"])
        assert torch.load(folder / "model_best.pth.tar")["acc"] == metrics["accuracy"].max()
    means = {c: mean_std([float(row[c]) for row in rows]) for c in ("accuracy", "last20")}
    assert "±" in means["accuracy"]
    assert lines[-1] == f"accuracy: {means['accuracy']} over 2 seeds"
    raw = mean_std([float(row["accuracy_raw"]) for row in rows])
    assert lines[-2] == f"accuracy of the raw network: {raw} over 2 seeds"
    assert lines[-3] == f"mean of at most 20 last tests: {means['last20']} over 2 seeds"
    assert [line.split()[0] for line in lines[-13:-3]] == [f"class-{i}" for i in range(10)]
    report = (run / "report.html").read_text()
    for text in ("mean of at most 20 last tests", means["last20"], "mask", "class-9", "seed 2"):
        assert text in report
    assert re.search(r"<dt>Steps</dt>\s*<dd>5</dd>", report) and "Epochs" not in report
    assert "training goes on" not in done.stderr

    # Tested alone, the average is what is tested, and nothing is written.
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    script(FIXMATCH, *fixmatching(cifar, run, *more, "EVAL_ONLY", True))
    alone = capsys.readouterr().out
    for row, seed in zip(rows, "12", strict=True):
        accuracy = float(row["accuracy"])
        assert f"seed {seed}, 20 labels of slice{seed}: accuracy {accuracy:.2f}" in alone
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert any(row["accuracy"] != row["accuracy_raw"] for row in rows)

    # What is finished is not trained again, and not gone on with under other settings.
    script(FIXMATCH, *fixmatching(cifar, run, *more))
    again = capsys.readouterr()
    assert again.err.count("training goes on from step 5") == 2
    assert again.out.splitlines()[-2:] == lines[-2:] and rows_of(run) == rows
    for options, message in (
        (("MODEL.DEPTH", 16), "is of other settings: MODEL.DEPTH was 10 and is 16"),
        ((LIST, "slice9"), "is of other settings: labelled was "),
        (("STEPS", 6), "is of other settings: STEPS was 5 and is 6"),
    ):
        with pytest.raises(InputError, match=message):
            script(FIXMATCH, *fixmatching(cifar, run, *more, *options))


def test_answers_of_a_person_and_a_pretrained_network(cifar, encoder, script, tmp_path, capsys):
    images = open_dataset("cifar10", cifar)
    path = tmp_path / "mine.csv"
    path.write_text("Index,Label\n" + "".join(f"{i},class-{i % 4}\n" for i in range(9, 21)))
    options = (
        LIST, path, "MODEL.ARCH", "SmallResNet", "MODEL.PRETRAIN_PATH", encoder,
    )  # fmt: skip
    cfg = settings(FIXMATCH, *fixmatching(cifar, tmp_path / "run", *options))
    (trial,) = trials_of(cfg, images)
    assert trial.labelled.indices.tolist() == list(range(9, 21))
    assert trial.labelled.labels.tolist() == [i % 4 for i in range(9, 21)]
    # It starts with the encoder's weights and a linear layer of its own, anew for each seed.
    build = network_of(cfg, images)
    network, expected = build(), torch.load(encoder)
    for name, weights in network.backbone.state_dict().items():
        assert torch.equal(weights, expected[f"backbone.{name}"]), name
        weights.zero_()
    assert build().backbone.conv1.weight.any() and network.linear.weight.shape == (10, 64)

    script(FIXMATCH, *fixmatching(cifar, tmp_path / "run", *options))
    out = capsys.readouterr()
    (row,) = rows_of(tmp_path / "run")
    assert (row["list"], row["selector"], row["budget"]) == (str(path), "mine", "12")
    assert re.fullmatch(r"accuracy: \d+\.\d\d", out.out.splitlines()[-1])
    # Six classes have no label: said, and training goes on.
    assert f"{path}: no image is labelled class-4, class-5, class-6" in out.err
    weights = torch.load(tmp_path / "run" / "seed1" / "checkpoint.pth.tar")["state_dict"]
    assert set(weights) == set(network.state_dict())


def test_the_sources_of_labels_with_skip_save(cifar, script, tmp_path, capsys):
    np.save(tmp_path / "picks_1.npy", np.array([5, 150, 3]))
    options = ("SKIP_SAVE", True, "STEPS", 2, LIST, tmp_path / "picks_{seed}.npy")
    script(FIXMATCH, *fixmatching(cifar, tmp_path / "run", *options, "FIXMATCH.LAMBDA_U", 0))
    # Three labels, fewer than the batch of four.
    out = capsys.readouterr().out
    assert out.startswith(f"seed 1, 3 labels of {tmp_path / 'picks_1.npy'}: accuracy ")
    assert not (tmp_path / "run").exists()


def test_a_network_from_scratch_by_its_name():
    for options, kind in (
        (("MODEL.ARCH", "ResNet18"), (512, 64)),
        (("MODEL.ARCH", "SmallResNet", "MODEL.DEPTH", 10, "MODEL.WIDTH", 2), (64, 2)),
    ):
        network = network_of(settings(FIXMATCH, "--opts", *options), classes_like(7))()
        assert network.linear.weight.shape == (7, kind[0])
        assert len(network.backbone.conv1.weight) == kind[1]
    cfg = settings(FIXMATCH, "--opts", "MODEL.WIDTH", 8, "MODEL.DEPTH", 10)
    assert network_of(cfg, classes_like(100))().fc.weight.shape == (100, 512)


def test_a_batch_that_cannot_be_split_over_processes(cifar, script, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="DATALOADER.BATCH_SIZE is 4; choose a multiple of 3, the"):
        script(FIXMATCH, *fixmatching(cifar, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_says_so(cifar, script, tmp_path):
    options = ("OPTIMIZER.LR", 1e30, "FIXMATCH.EVAL_STEPS", 4)
    with pytest.raises(InputError, match="the loss is nan before step 4; nothing was saved yet; l"):
        script(FIXMATCH, *fixmatching(cifar, tmp_path / "run", *options))
