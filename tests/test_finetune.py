"""SimCLRv2-CLD fine-tuning: the network, the step, the script from its folder, bad input."""

import csv
import os
import pickle
import re
import runpy
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, in_processes, make_cifar, make_cld_checkpoint
from torch.nn import functional as F
from usl.data.augment import MocoChain
from usl.data.labelled import Labelled
from usl.data.strong import ScanChain
from usl.data.views import Views
from usl.models.encoders import new_network, save_encoder
from usl.steps.evaluation import mean_spread, training_chain

from usl import InputError
from usl.config import finetune_defaults, parse
from usl.data.datasets import ImageDataset, open_dataset
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet, CldEncoder, NormLinear, small_resnet
from usl.training import supervised
from usl.training.loop import Plan, fit
from usl.training.supervised import supervised_step

STAGE = ROOT / "semisup-simclrv2-cld"
CPU = torch.device("cpu")
LIST = "FINETUNE.LABELED_INDICES_PATH"


def small(seed=0, **sizes):
    torch.manual_seed(seed)
    return CifarResNet(**(small_resnet(2, 10) | sizes))


def test_cld_logits_are_those_of_the_cld_network_with_another_linear_layer():
    torch.manual_seed(0)
    encoder = CldEncoder(**small_resnet(2, 10))
    backbone = CifarResNet(**small_resnet(2, 10))
    backbone.load_state_dict(encoder.state_dict(), strict=False)
    classifier = Classifier(backbone, 7, cld=True)
    encoder.linear = NormLinear(encoder.dim, 7)
    encoder.linear.load_state_dict(classifier.linear.state_dict())
    x = torch.randn(5, 3, 32, 32)
    logits = classifier(x)
    torch.testing.assert_close(logits, encoder(x))
    torch.testing.assert_close(logits.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(classifier.linear.weight.norm(dim=0), torch.ones(7))


def test_plain_logits_are_a_linear_layer_on_the_backbone():
    backbone = small()
    classifier = Classifier(backbone, 7)
    x = torch.randn(5, 3, 32, 32)
    expected = backbone(x) @ classifier.linear.weight.T + classifier.linear.bias
    torch.testing.assert_close(classifier(x), expected)


def tiny_images(n=40, split="train"):
    random = np.random.RandomState(1)
    images = random.randint(0, 256, (n, 32, 32, 3)).astype(np.uint8)
    return ImageDataset("tiny", split, images, random.randint(3, size=n), ("a", "b", "c"))


def labelled(data, *indices):
    chosen = torch.tensor(indices)
    return Labelled("list", chosen, torch.from_numpy(data.labels)[chosen])


def train(network, *, epochs=2, repeats=6, data=None):
    data, chosen = data or tiny_images(), (3, 8, 1, 30)
    views = Views(data, "SCAN-cifar10", seed=5, device=CPU)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2)
    plan = Plan(epochs=epochs, batch_size=8, lr=0.1, schedule="constant", seed=5)
    step = supervised_step(views, MocoChain(), labelled(data, *chosen))
    images = repeats * len(chosen)
    return fit(network, step, optimizer, plan, images=images, device=CPU)


@pytest.mark.parametrize("frozen", [True, False])
def test_what_moves(frozen):
    network = Classifier(small(), 3, cld=True)
    if frozen:
        network.freeze_backbone()
    assert all(p.requires_grad is not frozen for p in network.backbone.parameters())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(network)
    for name, value in network.state_dict().items():
        parameter = name in dict(network.named_parameters())
        stays = frozen and parameter and name != "linear.weight"
        assert torch.equal(value, before[name]) is stays, name


def features_by_hand(weights, x):
    """The small ResNet in training mode, from its structure, without modules."""

    def norm(x, name):
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
        x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        scale, shift = (weights[f"{name}.{part}"][:, None, None] for part in ("weight", "bias"))
        return x * scale + shift

    x = norm(F.conv2d(x, weights["conv1.weight"], stride=2, padding=1), "bn1").clamp_min(0)
    for stage in (1, 2, 3, 4):
        name, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        out = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
        out = norm(out, f"{name}.bn1").clamp_min(0)
        out = norm(F.conv2d(out, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stage > 1:
            x = F.conv2d(x, weights[f"{name}.shortcut.0.weight"], stride=stride)
            x = norm(x, f"{name}.shortcut.1")
        x = (out + x).clamp_min(0)
    # 2×2 positions, each kept.
    return x.flatten(1).numpy()


class DoubleViews:
    """Views in float64, so that a gradient can be compared closely; it notes what was asked for."""

    def __init__(self, views):
        self.views, self.images, self.device = views, views.images, CPU
        self.calls, self.given = [], []

    def __call__(self, chain, draws, epoch, view, *, of):
        self.calls.append((draws.tolist(), epoch, view, of.tolist()))
        self.given.append(self.views(chain, draws, epoch, view, of=of).double())
        return self.given[-1]


@pytest.mark.parametrize("cld", [True, False])
def test_one_step_equals_the_oracle(cld):
    data = tiny_images()
    network = Classifier(small(), 3, cld=cld).double()
    network.freeze_backbone()
    with torch.no_grad():
        for name, buffer in network.named_parameters():
            if ".bn" in name:
                buffer += 0.2 * torch.randn_like(buffer)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    views = DoubleViews(Views(data, "digits", seed=5, device=CPU))
    optimizer = torch.optim.SGD(
        network.linear.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    plan = Plan(epochs=1, steps=1, batch_size=6, lr=0.3, schedule="constant", seed=2)
    chosen = labelled(data, 30, 4, 11)
    trained = fit(
        network, supervised_step(views, MocoChain(), chosen), optimizer, plan, images=9, device=CPU
    )

    ((draws, epoch, view, of),) = views.calls
    assert [d % 40 for d in draws] == of and set(of) <= {30, 4, 11} and (epoch, view) == (0, 0)
    (x,) = views.given
    backbone = {k.removeprefix("backbone."): v for k, v in start.items() if "backbone" in k}
    f = features_by_hand(backbone, x)
    y, n = np.eye(3)[data.labels[of]], len(of)
    w = start["linear.weight"].numpy()
    if cld:
        lengths = np.linalg.norm(w, axis=0)
        z = f @ (w / lengths)
        norms = np.linalg.norm(z, axis=1, keepdims=True)
        logits = z / norms
    else:
        logits = f @ w.T + start["linear.bias"].numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log((p * y).sum(axis=1)).mean()
    assert trained.metrics["loss"][0] == pytest.approx(loss, rel=1e-6)
    right = 100 * (logits.argmax(axis=1) == y.argmax(axis=1)).mean()
    assert trained.metrics["train_accuracy"][0] == pytest.approx(right)

    g = (p - y) / n
    if cld:
        g = (g - logits * (g * logits).sum(axis=1, keepdims=True)) / norms
        d = f.T @ g
        unit = w / lengths
        gradients = {"linear.weight": (d - unit * (unit * d).sum(axis=0)) / lengths}
    else:
        gradients = {"linear.weight": g.T @ f, "linear.bias": g.sum(axis=0)}
    for name, gradient in gradients.items():
        # Nesterov's first step: the gradient with decay, and 0.9 of it again. The tolerance is
        # that of the loss, which is computed in float32.
        gradient = gradient + 0.01 * start[name].numpy()
        expected = start[name].numpy() - 0.3 * (gradient + 0.9 * gradient)
        np.testing.assert_allclose(
            network.state_dict()[name].numpy(), expected, rtol=1e-5, atol=1e-7
        )


def test_every_visit_of_an_image_is_another_view_whatever_the_list():
    data = tiny_images()

    def shown(*chosen):
        views = DoubleViews(Views(data, "digits", seed=5, device=CPU))
        step = supervised_step(views, MocoChain(), labelled(data, *chosen))(small().double())
        for epoch in (0, 1):
            step(torch.arange(4 * len(chosen)), epoch, 0)
        return {
            (epoch, image, draw // 40): row
            for (draws, epoch, _, of), x in zip(views.calls, views.given, strict=True)
            for draw, image, row in zip(draws, of, x, strict=True)
        }

    one, other = shown(3, 8), shown(30, 8, 3)
    visits = [key for key in one if key[1] == 8]
    assert len(visits) == 8
    for i, key in enumerate(visits):
        assert all(not torch.equal(one[key], one[before]) for before in visits[:i])
        torch.testing.assert_close(one[key], other[key])


def test_accuracy():
    test = tiny_images(30, "test")
    answers = test.labels.copy()
    answers[[0, 7, 9]] = 0
    answers[answers == 2] = 1
    test = ImageDataset("tiny", "test", test.images, answers, ("a", "b", "c"))

    class First(torch.nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(x), -1)

    tested = supervised.Tester(test, "digits", batch_size=8, device=CPU)
    network = First()
    accuracy = tested(network)["accuracy"]
    assert accuracy == pytest.approx(100 * (answers == 0).mean())
    calls = First.calls
    by_class = tested.by_class(network)
    assert by_class[:2].tolist() == [100, 0] and np.isnan(by_class[2]) and First.calls == calls
    again = supervised.Tester(test, "digits", batch_size=8, device=CPU)
    np.testing.assert_equal(again.by_class(network), by_class)
    without = ImageDataset("tiny", "test", test.images, None, ("a",))
    with pytest.raises(InputError, match="the test images of tiny have no labels"):
        supervised.Tester(without, "digits", batch_size=8, device=CPU)


def test_training_learns_what_it_is_shown():
    data = tiny_images()
    stripes = np.zeros_like(data.images)
    for image, label in zip(stripes, data.labels, strict=True):
        image[:: label + 2] = 255
    data = ImageDataset("stripes", "train", stripes, data.labels, data.classes)
    metrics = train(Classifier(small(), 3), epochs=8, repeats=20, data=data).metrics
    assert metrics["loss"].iloc[-1] < 0.5 * metrics["loss"][0]
    assert metrics["train_accuracy"].iloc[-1] > metrics["train_accuracy"][0]


def test_augmentation_by_transform():
    augment = finetune_defaults().AUGMENT
    for name in ("CLD-cifar10", "CLD-cifar100", "fashion-mnist", "digits"):
        assert training_chain(name, augment) == MocoChain()
    augment.FLIP, augment.CROP, augment.BLUR = 0.0, 0.4, 0.1
    assert training_chain("digits", augment) == MocoChain(scale=(0.4, 1.0), flip=0.0, blur=0.1)
    mean, cifar100 = (0.4914, 0.4822, 0.4465), (0.5071, 0.4867, 0.4408)
    for name, fill in (
        ("FixMatch-cifar10", mean), ("SCAN-cifar10", mean),
        ("FixMatch-cifar100", cifar100), ("SCAN-cifar100", cifar100),
    ):  # fmt: skip
        assert training_chain(name, augment) == ScanChain(flip=0.0, operations=4, fill=fill)


def test_mean_and_spread():
    assert mean_spread([76.123]) == "76.12"
    assert mean_spread([70.0, 80.0]) == "75.00 ± 7.07"


# The original's defaults of this stage.
DEFAULTS = {
    "RUN_NAME": "", "SAVE_DIR": "saved", "SAVE_DIR_EXIST_OK": True, "RUN_DIR": "",
    "SKIP_SAVE": False, "OPTS_IN_RUN_NAME": False, "RECOMPUTE_ALL": True,
    "RECOMPUTE_NUM_DEP": True, "DATASET.NAME": "", "DATASET.ROOT_DIR": "../data",
    "DATASET.TRANSFORM_NAME": "", "DATALOADER.BATCH_SIZE": 128, "DATALOADER.WORKERS": 8,
    "MODEL.ARCH": "ResNet18", "MODEL.PRETRAIN_PATH": "", "MODEL.BACKBONE_DIM": 512,
    "MODEL.USE_CLD": True, "OPTIMIZER.NAME": "SGD", "OPTIMIZER.LR": 0.01,
    "OPTIMIZER.MOMENTUM": 0.9, "OPTIMIZER.NESTEROV": True, "OPTIMIZER.WEIGHT_DECAY": 0.0001,
    "EPOCHS": 5, "FINETUNE.LABELED_INDICES_PATH": "", "FINETUNE.FREEZE_BACKBONE": True,
    "FINETUNE.REPEAT_DATA": 100, "SCHEDULE": "constant", "WARMUP_EPOCHS": 0,
}  # fmt: skip


def settings(*argv):
    return parse(finetune_defaults(), list(argv), script=str(STAGE / "fine_tune.py"))


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def test_the_originals_keys_and_defaults_stay():
    cfg = finetune_defaults()
    assert {key: value(cfg, key) for key in DEFAULTS} == DEFAULTS


def test_every_config_parses_and_states_its_command():
    paths = sorted((STAGE / "configs").glob("*.yaml"))
    assert len(paths) == 13
    for path in paths:
        assert path.stem.startswith(settings("--cfg", str(path)).RUN_NAME.removesuffix("_simclr"))
        assert f"\n#   python fine_tune.py --cfg configs/{path.name}\n" in path.read_text()


def test_a_yaml_written_for_the_original_works_unchanged(tmp_path):
    (tmp_path / "old.yaml").write_text(
        "RUN_NAME: 'cifar10_usl'\nRECOMPUTE_ALL: False\nDATASET:\n  NAME: cifar10\n"
        "  TRANSFORM_NAME: CLD-cifar10\nDATALOADER:\n  BATCH_SIZE: 128\nMODEL:\n  ARCH: ResNet18\n"
        "  USE_CLD: False\n  PRETRAIN_PATH: 'pretrained/x.pth'\nOPTIMIZER:\n  NAME: SGD\n  LR: 1\n"
        "FINETUNE:\n  LABELED_INDICES_PATH: '../selective_labeling/saved/a/b.npy'\n"
        "  REPEAT_DATA: 100\n"
    )
    cfg = settings("--cfg", str(tmp_path / "old.yaml"))
    assert str(ROOT / "selective_labeling/saved/a/b.npy") == cfg.FINETUNE.LABELED_INDICES_PATH
    assert cfg.OPTIMIZER.LR == 1.0 and not cfg.MODEL.USE_CLD
    with pytest.raises(InputError, match="--opts: SEED is a setting of another stage"):
        settings("--opts", "SEED", "3")


def run_script(*argv, **options):
    """As a person does: a new process, from the stage's folder."""
    command = [sys.executable, "fine_tune.py", *map(str, argv)]
    return subprocess.run(command, cwd=STAGE, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
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


def test_a_published_list_on_files_in_cifars_format(cifar, tmp_path):
    # The original README's command, a published list, and less of everything.
    config = ("--cfg", "semisup-simclrv2-cld/configs/cifar10_usl-t_finetune.yaml", "--opts")
    data = ("DATASET.ROOT_DIR", cifar, "MODEL.PRETRAIN_PATH", cifar / "cld.pth")
    less = ("FINETUNE.REPEAT_DATA", 2, "EPOCHS", 1, "DATALOADER.BATCH_SIZE", 16)
    run = tmp_path / "run"
    done = run_script(*config, *data, LIST, "released/cifar10_usl-t.csv", "RUN_DIR", run, *less)
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
    before = torch.load(cifar / "cld.pth")["model"]
    after = torch.load(run / "seed0" / "checkpoint.pth")["model"]
    assert after.pop("linear.weight").shape == (512, 10)
    for key, new in after.items():
        old = before[f"module.{key.removeprefix('backbone.')}"]
        assert torch.equal(old, new) is ("running" not in key and "num_b" not in key), key


def test_picks_that_do_not_exist_yet(cifar, tmp_path):
    config = ("--cfg", "semisup-simclrv2-cld/configs/cifar10_usl-t_finetune.yaml", "--opts")
    picks = ROOT / "selective_labeling/saved/cifar10_usl-t/selected_indices_40_77.npy"
    data = ("DATASET.ROOT_DIR", cifar, "MODEL.PRETRAIN_PATH", cifar / "cld.pth")
    done = run_script(*config, *data, "RUN_DIR", tmp_path / "run", LIST, picks)
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "run").exists()
    assert done.stderr.startswith("error: there is no list of labelled images (FINETUNE.LABELED_")
    assert done.stderr.count("\n") == 1 and str(picks) in done.stderr
    assert "selective_labeling/usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml" in done.stderr
    assert "released/cifar10_usl-t.csv" in done.stderr


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small SimCLR encoder with random weights, in SCAN's layout."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    torch.manual_seed(0)
    save_encoder(path, new_network("SmallResNet", 2, 10, cld=False), cld=False)
    return path


def digits(encoder, run, *options):
    return (
        "--cfg", "configs/digits_usl_finetune.yaml", "--opts", "MODEL.PRETRAIN_PATH", encoder,
        "MODEL.BACKBONE_DIM", 64, "RUN_DIR", run, "FINETUNE.REPEAT_DATA", 7, "EPOCHS", 3,
        "FINETUNE.SEEDS", "[1, 2]", LIST, "slice{seed}", *options,
    )  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """Call the script's main(argv) in this process, from its folder."""

    def call(*argv):
        monkeypatch.chdir(STAGE)
        runpy.run_path("fine_tune.py")["main"]([str(a) for a in argv])

    return call


def rows_of(run):
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_seeds(encoder, script, tmp_path, capsys):
    script(*digits(encoder, tmp_path / "run"))
    lines = capsys.readouterr().out.splitlines()
    rows = rows_of(tmp_path / "run")
    assert [(r["seed"], r["list"], r["selector"]) for r in rows] == [
        ("1", "slice1", "stratified"),
        ("2", "slice2", "stratified"),
    ]
    accuracies = [float(r["accuracy"]) for r in rows]
    assert lines[-1] == f"accuracy: {mean_spread(accuracies)} over 2 seeds"
    # The mean over classes, weighted by their test images, is the accuracy.
    counts = np.bincount(open_dataset("digits", "", "test").labels)
    shown = [float(line.split()[1]) for line in lines[-11:-1]]
    assert np.average(shown, weights=counts) == pytest.approx(np.mean(accuracies), abs=0.02)
    report = (tmp_path / "run" / "report.html").read_text()
    assert "mean ± spread" in report and mean_spread(accuracies) in report

    # A seed more: what is finished is not trained again.
    old = (tmp_path / "run" / "seed2" / "checkpoint.pth").stat().st_mtime_ns
    script(*digits(encoder, tmp_path / "run", "FINETUNE.SEEDS", "[2, 3]"))
    more = rows_of(tmp_path / "run")
    assert more[0] == rows[1] and more[1]["seed"] == "3"
    assert (tmp_path / "run" / "seed2" / "checkpoint.pth").stat().st_mtime_ns == old
    # And alone it comes to the same.
    script(*digits(encoder, tmp_path / "alone", "FINETUNE.SEEDS", "[3]"))
    assert rows_of(tmp_path / "alone")[0]["accuracy"] == more[1]["accuracy"]


def test_answers_of_a_person_replace_the_labels(encoder, script, tmp_path, capsys):
    labels = open_dataset("digits", "").labels
    path = tmp_path / "mine.csv"
    path.write_text("Index,Label\n" + "".join(f"{i},{9 - labels[i]}\n" for i in range(40)))
    options = (
        "FINETUNE.SEEDS", "[0]", "FINETUNE.FREEZE_BACKBONE", False, "OPTIMIZER.LR", 0.1,
        "EPOCHS", 10, "AUGMENT.CROP", 0.9,
    )  # fmt: skip
    script(*digits(encoder, tmp_path / "run", *options, LIST, path))
    (row,) = rows_of(tmp_path / "run")
    mine = float(row["accuracy"])
    assert (row["list"], row["selector"], row["budget"]) == (str(path), "mine", "40")
    np.save(tmp_path / "theirs.npy", np.arange(40))
    theirs = (LIST, tmp_path / "theirs.npy", "RESUME", "none")
    script(*digits(encoder, tmp_path / "run", *options, *theirs))
    assert float(rows_of(tmp_path / "run")[0]["accuracy"]) > 40 > mine + 20


def test_few_labels_are_drawn_more_often(encoder, script, tmp_path, capsys):
    options = ("FINETUNE.NUM_LABELED", 3, "FINETUNE.REPEAT_DATA", 1, "FINETUNE.SEEDS", "[0]")
    script(*digits(encoder, tmp_path / "run", *options))
    out = capsys.readouterr()
    assert "seed 0, 3 labels of slice0: accuracy" in out.out
    assert re.search(r"slice0: no image is labelled (\d, ){6}\d\n", out.err)
    metrics = (tmp_path / "run" / "seed0" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in metrics[1:]] == ["1", "2", "3"]


def test_nothing_is_written_with_skip_save(encoder, script, tmp_path, capsys):
    script(*digits(encoder, tmp_path / "run", "SKIP_SAVE", True, "MODEL.USE_CLD", True))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out.splitlines()[-1].endswith(" over 2 seeds")


def test_killed_and_resumed(encoder, tmp_path):
    options = ("CHECKPOINT_STEPS", 1, "EPOCHS", 8, "FINETUNE.FREEZE_BACKBONE", False)
    whole = run_script(*digits(encoder, tmp_path / "whole", *options))
    assert whole.returncode == 0, whole.stderr
    argv = digits(encoder, tmp_path / "run", *options)
    command = [sys.executable, "fine_tune.py", *map(str, argv)]
    process = subprocess.Popen(
        command, cwd=STAGE, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    path = tmp_path / "run" / "seed2" / "checkpoint.pth"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert torch.load(path)["step"] < 16

    rest = run_script(*argv)
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
    done = run_script(*argv, LIST, "slice4")
    assert done.returncode == 2 and "is of other settings: labelled was " in done.stderr


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
    ("EPOCHS", 0): "0 epochs and 0 steps; choose at least 1",
    ("SCHEDULE", "zigzag"): "unknown SCHEDULE 'zigzag'",
    ("PRECISION", "int4"): "unknown precision 'int4'",
    ("RESUME", "maybe"): "RESUME is 'maybe'; choose auto or none",
    ("OPTIMIZER.NAME", "Adam"): "unknown OPTIMIZER.NAME 'Adam'; choose SGD",
    ("OPTIMIZER.LR", 0): "OPTIMIZER.LR is 0.0; choose a positive number",
    ("OPTIMIZER.MOMENTUM", 0): "OPTIMIZER.NESTEROV needs a MOMENTUM",
    ("OPTIMIZER.MOMENTUM", -1): "OPTIMIZER.MOMENTUM is -1.0; choose 0 or more",
    ("OPTIMIZER.WEIGHT_DECAY", "nan"): "OPTIMIZER.WEIGHT_DECAY is nan; choose 0 or more",
    ("AUGMENT.FLIP", 2): "the probability flip is 2.0; choose 0 to 1",
    ("AUGMENT.CROP", 0): "choose 0 < low ≤ high ≤ 1",
    ("AUGMENT.BACKEND", "gimp"): "unknown AUGMENT.BACKEND 'gimp'",
    ("DATASET.TRANSFORM_NAME", "x"): "unknown DATASET.TRANSFORM_NAME 'x'",
    ("DATASET.NAME", "mnist"): "unknown DATASET.NAME 'mnist'",
    ("MODEL.PRETRAIN_PATH", ""): "MODEL.PRETRAIN_PATH is empty; SmallResNet needs a checkpoint",
    ("MODEL.PRETRAIN_PATH", "x.pth"): "there is no checkpoint (MODEL.PRETRAIN_PATH)",
    ("MODEL.ARCH", "ResNet18"): "is of another network",
    ("MODEL.ARCH", "pixels"): "unknown MODEL.ARCH 'pixels'; choose one of ResNet18, SmallResNet",
    ("MODEL.BACKBONE_DIM", 512): "MODEL.BACKBONE_DIM is 512, SmallResNet has 64",
    ("DEVICE", "abacus"): "DEVICE abacus is not on this machine",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(map(str, options)))
def test_bad_settings(encoder, script, tmp_path, options):
    with pytest.raises(InputError) as error:
        script(*digits(encoder, tmp_path / "run", *options))
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
        script(*digits(encoder, tmp_path / "run", LIST, tmp_path / "list.csv"))
    assert not (tmp_path / "run").exists()


def test_images_in_files_are_not_for_this_stage(encoder, script, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for number in range(4):
            path = tmp_path / "data" / split / "a" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(InputError, match="DATASET.NAME is 'folder', whose images are files"):
        options = ("DATASET.NAME", "folder", "DATASET.ROOT_DIR", tmp_path / "data")
        script(*digits(encoder, tmp_path / "run", *options))


def test_a_loss_that_is_not_finite(encoder, script, tmp_path):
    with pytest.raises(InputError, match="the loss is .* before step .*; lower OPTIMIZER.LR"):
        script(*digits(encoder, tmp_path / "run", "OPTIMIZER.LR", 1e30, "EPOCHS", 20))


def test_a_checkpoint_of_something_else(script, tmp_path):
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="x.pth is of another network; missing: conv1.weight"):
        script(*digits(tmp_path / "x.pth", tmp_path / "run"))


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from test_finetune import CPU, Classifier, small, train
from usl import distributed
with distributed.processes(CPU):
    network = Classifier(small(), 3, cld=True)
    network.freeze_backbone()
    trained = train(network, epochs=1)
    if distributed.is_first():
        weights = [w.double().flatten().tolist() for w in trained.network.state_dict().values()]
        print("RESULT " + json.dumps([trained.metrics["loss"].tolist(), weights]))
"""


def test_two_processes_nearly_equal_one(tmp_path):
    # Batch norm adds up over processes in another order; later steps enlarge that.
    code = WORKER.format(tests=str(ROOT / "tests"))
    results = [in_processes(tmp_path / "worker.py", code, count) for count in (1, 2)]
    (one_loss, one), (two_loss, two) = results
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-3)
