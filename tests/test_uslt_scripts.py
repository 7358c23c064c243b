"""USL-T's scripts, from neighbours to picks, each from its own folder."""

import json
import math
import pickle
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import oracle
import pytest
import torch
from conftest import ROOT, make_cifar
from PIL import Image
from torch import nn
from usl.data.augment import MocoChain
from usl.data.draws import permutation
from usl.data.strong import ScanChain
from usl.data.transforms import NORMALIZATION
from usl.features import extract

from usl import InputError, config
from usl.data import datasets
from usl.models.resnet_cifar import CifarResNet, CldNetwork, PretextEncoder, small_resnet
from usl.models.uslt import UsltNetwork, new_heads
from usl.training.uslt import Reassignment, Weights
from usl.training.uslt_losses import GlobalOptions, LocalCriterion

NAMES = json.loads((Path(__file__).parent / "state_dicts.json").read_text())
MINE, PRETRAIN, SELECT = "mine-neighbors.py", "usl-t-cifar-pretrain.py", "usl-t-cifar.py"
FOLDER_PRETRAIN, FOLDER_SELECT = "usl-t-imagenet-pretrain.py", "usl-t-imagenet.py"
SIZES = small_resnet(2, 10)
CLUSTERS = 6
TINY = ("MODEL.ARCH", "SmallResNet", "MODEL.BACKBONE_DIM", 64)


def folder_of(name):
    return next(ROOT.glob(f"*/{name}")).parent


def run(name, *argv):
    """A script in a process of its own."""
    command = [sys.executable, name, *map(str, argv)]
    return subprocess.run(command, cwd=folder_of(name), capture_output=True, text=True)


@pytest.fixture
def script(monkeypatch):
    """Call a script's main(argv) in this process, from its own folder, without pictures."""
    for name in ("training.write_training_report", "selection.write_selection_report"):
        monkeypatch.setattr(f"usl.steps.{name}", lambda *args, **options: None)
    monkeypatch.setattr("usl.steps.selection.feature_map", lambda *args: None)

    def call(name, *argv):
        monkeypatch.chdir(folder_of(name))
        runpy.run_path(str(folder_of(name) / name))["main"]([str(a) for a in argv])

    return call


def printed(text):
    """The indices that were printed."""
    (found,) = re.findall(r"^indices: (\[.*\])$", text, flags=re.M)
    return json.loads(found)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Files in CIFAR's format, and a pretext checkpoint of a tiny network."""
    root = make_cifar(tmp_path_factory.mktemp("data"), per_file=16)
    torch.manual_seed(0)
    weights = PretextEncoder(**SIZES).state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, root / "pretext.pth.tar")
    return root


def pretraining(root, neighbors, folder):
    return (
        "--cfg", "configs/cifar10_usl-t_pretrain.yaml", "--opts", *TINY,
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", root / "pretext.pth.tar",
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH", neighbors, "RUN_DIR", folder,
        "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", CLUSTERS, "USLT_PRETRAIN.CONFIDENCE_THRESHOLD", 0.2,
        "EPOCHS", 2, "DATALOADER.BATCH_SIZE", 16, "OPTIMIZER.LR", 1e-3,
    )  # fmt: skip


def selection(root, checkpoint, folder):
    return (
        "--cfg", "configs/cifar10_usl-t.yaml", "--opts", *TINY, "DATASET.ROOT_DIR", root,
        "MODEL.PRETRAIN_PATH", checkpoint, "RUN_DIR", folder, "USLT.NUM_SELECTED_SAMPLES", 0,
        "USLT.NUM_CLUSTERS", 0, "DATALOADER.BATCH_SIZE", 16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def clean(data, tmp_path_factory):
    """Neighbours, training and picks by three processes that nothing disturbed."""
    root = tmp_path_factory.mktemp("clean")
    options = ("DATASET.ROOT_DIR", data, "MODEL.PRETRAIN_PATH", data / "pretext.pth.tar")
    config = ("--cfg", "configs/cifar10_neighbors.yaml", "--opts", *TINY, *options)
    mined = run(MINE, *config, "RUN_DIR", root / "mined", "DATALOADER.BATCH_SIZE", 16)
    assert mined.returncode == 0, mined.stderr
    neighbors = root / "mined" / "topk-train-neighbors.npy"
    trained = run(PRETRAIN, *pretraining(data, neighbors, root / "trained"))
    assert trained.returncode == 0, trained.stderr
    checkpoint = root / "trained" / "checkpoint.pth"
    picked = run(SELECT, *selection(data, checkpoint, root / "picked"))
    assert picked.returncode == 0, picked.stderr
    return root, mined, trained, picked


def load(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def equal_training(a, b):
    """Whether two checkpoints hold the same weights and averages, to the bit."""
    for key in ("model", "criterion_local", "criterion_global"):
        assert list(a[key]) == list(b[key])
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def fill(clusters, score, budget):
    """Best of each live cluster by its index; then the next best of the largest in turn."""
    members = {}
    for i in sorted(range(len(clusters)), key=lambda i: (-score[i], i)):
        members.setdefault(int(clusters[i]), []).append(i)
    by_size = sorted(members, key=lambda c: (-len(members[c]), c))
    picks = [members[c][0] for c in sorted(by_size[:budget])]
    turns = [(k, c) for k in range(1, len(clusters)) for c in by_size if k < len(members[c])]
    return picks + [members[c][k] for k, c in turns[: budget - len(picks)]]


def by_hand(features, model, *, head, mean, budget):
    """Picks of the CIFAR form from features and the weights of linear heads, in float64."""
    p = []
    for h in range(3):
        weight, bias = (model[f"cluster_head.{h}.{k}"].double().numpy() for k in ("weight", "bias"))
        p.append(softmax(features.astype(np.float64) @ weight.T + bias))
    tops = [x.max(axis=1) for x in p]
    return fill(p[head].argmax(axis=1), sum(tops) / 3 if mean else tops[head], budget)


def test_from_neighbours_to_picks(clean, data):
    root, mined, trained, picked = clean
    features = np.load(root / "mined" / "memory_feats_list.npy")
    neighbors = np.load(root / "mined" / "topk-train-neighbors.npy")
    assert features.shape == (80, 128) and neighbors.shape == (80, 21)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert neighbors.tolist() == oracle.neighbors(features, 21)[1].tolist()
    assert re.search(r"neighbours of the same class: \d+\.\d %", mined.stdout)

    for name in ("checkpoint.pth", "metrics.csv", "report.html", "config.yaml", "run.json"):
        assert (root / "trained" / name).exists(), name
    header = (root / "trained" / "metrics.csv").read_text().splitlines()[0].split(",")
    kinds = ["live", "largest", "smallest", "above", "confidence", "entropy", "macc", "nmi", "ari"]
    assert {f"{kind}/{head}" for kind in kinds for head in range(3)} <= set(header)
    assert {"loss", "loss_global", "loss_local"} <= set(header)
    for head in range(3):
        assert f"training images, head {head}: live " in trained.stdout
    assert "curve of loss" in (root / "trained" / "report.html").read_text()

    content = load(root / "trained")
    indices = printed(picked.stdout)
    assert np.load(root / "picked" / f"selected_indices_{CLUSTERS}_0.npy").tolist() == indices
    features = np.load(root / "picked" / "memory_feats_list.npy")
    assert features.shape == (80, 64)
    assert indices == by_hand(features, content["model"], head=0, mean=True, budget=CLUSTERS)
    assert len(set(indices)) == CLUSTERS and (root / "picked" / "report.html").exists()
    labels = datasets.open_dataset("cifar10", data).labels
    clusters = content["model"]["cluster_head.1.weight"].double().numpy() @ features.T
    clusters = clusters + content["model"]["cluster_head.1.bias"].double().numpy()[:, None]
    clusters = clusters.argmax(axis=0)
    right = sum(np.bincount(labels[clusters == c]).max() for c in set(clusters.tolist()))
    assert f"head 1: accuracy by majority label {100 * right / 80:.1f}, by the p" in picked.stdout


def test_what_is_written_has_the_released_layout(clean):
    content = load(clean[0] / "trained")
    released = {
        "model", "ema_model", "optimizer", "epoch", "criterion_local", "criterion_global",
        "val_predictions",
    }  # fmt: skip
    assert released <= set(content)
    assert content["ema_model"] is None and content["epoch"] == 2
    assert content["criterion_local"]["prob_ema"].shape == (3, CLUSTERS)
    assert list(content["criterion_global"]) == ["num_counts"]
    assert content["criterion_global"]["num_counts"].tolist() == [10]
    assert [p["predictions"].shape for p in content["val_predictions"]] == [(16,)] * 3
    # The backbone has been trained as well.
    before = CifarResNet(**SIZES).state_dict()
    assert {f"backbone.{k}" for k in before} < set(content["model"])


def test_killed_in_the_second_epoch_and_resumed(clean, data, tmp_path, script, monkeypatch):
    forward, calls = LocalCriterion.forward, []

    def dying(self, *views):
        calls.append(self)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return forward(self, *views)

    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    argv = pretraining(data, neighbors, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalCriterion, "forward", dying)
        script(PRETRAIN, *argv)
    assert load(tmp_path / "run")["step"] == 5
    script(PRETRAIN, *argv)
    equal_training(load(tmp_path / "run"), load(clean[0] / "trained"))

    def without_times(folder):
        rows = [x.split(",") for x in (folder / "metrics.csv").read_text().splitlines()]
        place = rows[0].index("images_per_second")
        return [row[:place] + row[place + 1 :] for row in rows]

    assert without_times(tmp_path / "run") == without_times(clean[0] / "trained")


def test_other_neighbours_do_not_go_on_from_the_same_checkpoint(clean, data, tmp_path, script):
    neighbors = np.load(clean[0] / "mined" / "topk-train-neighbors.npy")
    np.save(tmp_path / "same.npy", neighbors)
    np.save(tmp_path / "other.npy", neighbors[:, [0, *range(20, 0, -1)]])
    before = (clean[0] / "trained" / "checkpoint.pth").read_bytes()
    # An input is known by its content, wherever it lies.
    script(PRETRAIN, *pretraining(data, tmp_path / "same.npy", clean[0] / "trained"))
    message = "is of other settings: USLT_PRETRAIN.TOPK_NEIGHBORS_PATH was"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(data, tmp_path / "other.npy", clean[0] / "trained"))
    assert (clean[0] / "trained" / "checkpoint.pth").read_bytes() == before


def test_eval_only_prints_and_writes_nothing(clean, data, script, capsys):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    folder = clean[0] / "trained"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    script(PRETRAIN, *pretraining(data, neighbors, folder), "EVAL_ONLY", True)
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    for head in range(3):
        assert f"training images, head {head}: live " in out
        last = (folder / "metrics.csv").read_text().splitlines()
        names, values = last[0].split(","), last[-1].split(",")
        for kind in ("live", "macc", "entropy"):
            value = float(values[names.index(f"{kind}/{head}")])
            assert f"{kind}/{head}: {value:.4g}\n" in out
    # The same as was printed after training.
    assert re.findall("training images.*", out) == re.findall("training images.*", clean[2].stdout)
    with pytest.raises(InputError, match="there is no .*nowhere/checkpoint.pth; train first, or"):
        argv = pretraining(data, neighbors, folder / "nowhere")
        script(PRETRAIN, *argv, "EVAL_ONLY", True)
    assert not (folder / "nowhere").exists()


def test_shuffled_labels_change_nothing(clean, data, tmp_path, script, capsys):
    make_cifar(tmp_path, per_file=16)
    for path in (tmp_path / "cifar-10-batches-py").glob("*_batch*"):
        content = pickle.loads(path.read_bytes())
        content["labels"] = content["labels"][::-1]
        path.write_bytes(pickle.dumps(content, protocol=2))
    (tmp_path / "pretext.pth.tar").write_bytes((data / "pretext.pth.tar").read_bytes())
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    script(PRETRAIN, *pretraining(tmp_path, neighbors, tmp_path / "trained"))
    equal_training(load(tmp_path / "trained"), load(clean[0] / "trained"))
    out = capsys.readouterr().out
    assert re.findall("live/0.*", out) == re.findall("live/0.*", clean[2].stdout)
    assert re.findall(r"macc [\d.]+", out) != re.findall(r"macc [\d.]+", clean[2].stdout)
    checkpoint = tmp_path / "trained" / "checkpoint.pth"
    script(SELECT, *selection(tmp_path, checkpoint, tmp_path / "picked"))
    assert printed(capsys.readouterr().out) == printed(clean[3].stdout)


def test_without_labels_the_picks_come_out_all_the_same(
    clean, data, tmp_path, script, capsys, monkeypatch
):
    opened = datasets.DATASETS["cifar10"]
    monkeypatch.setitem(datasets.DATASETS, "cifar10", lambda *a: replace(opened(*a), labels=None))
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    script(PRETRAIN, *pretraining(data, neighbors, tmp_path / "trained"))
    equal_training(load(tmp_path / "trained"), load(clean[0] / "trained"))
    out = capsys.readouterr().out
    assert "live/0: " in out and "macc" not in out
    script(SELECT, *selection(data, tmp_path / "trained" / "checkpoint.pth", tmp_path / "picked"))
    out = capsys.readouterr().out
    assert printed(out) == printed(clean[3].stdout)
    assert "accuracy" not in out and "class counts" not in out


class Stop(Exception):
    pass


@pytest.fixture
def called(monkeypatch):
    """With what the training is called, which then does not begin."""
    seen = SimpleNamespace()

    def record(name, names, result=None):
        def call(*args, **options):
            setattr(seen, name, SimpleNamespace(**dict(zip(names, args, strict=True)), **options))
            if result is None:
                raise Stop
            return result

        monkeypatch.setattr(f"usl.steps.uslt.{name}", call)

    record("uslt_step", ["views", "chain", "neighbors", "local", "whole", "weights"], "step")
    record("reassigning", ["network", "whole", "reassignment"], "after")
    record("fit", ["network", "step", "optimizer", "plan"])
    return seen


SETTINGS = {
    "USLT_PRETRAIN.ADJUSTMENT_WEIGHT": 1.5, "USLT_PRETRAIN.SHARPEN_TEMPERATURE": 0.75,
    "USLT_PRETRAIN.LOCAL_LOSS_SCALE": 3.5, "USLT_PRETRAIN.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH": 7.0,
    "USLT_PRETRAIN.GLOBAL_START_EPOCH": 2, "USLT_PRETRAIN.CONFIDENCE_THRESHOLD": 0.35,
    "USLT_PRETRAIN.EMA_DECAY": 0.6, "USLT_PRETRAIN.NUM_NEIGHBORS": 3, "OPTIMIZER.LR": 2e-3,
    "OPTIMIZER.WEIGHT_DECAY": 3e-3, "AUGMENT.FLIP": 0.25, "SEED": 9, "SCHEDULE": "cosine",
    "WARMUP_EPOCHS": 2, "EPOCHS": 11, "EVALUATE_EVERY": 5, "CHECKPOINT_STEPS": 4, "ACCUMULATE": 2,
    "PRECISION": "bfloat16",
}  # fmt: skip


def check_called(called, *, images, batch, options):
    """Every one of SETTINGS is where it belongs."""
    fit, step = called.fit, called.uslt_step
    assert step.weights == Weights(3.5, 7.0, 2) and step.seed == 9 and step.views.seed == 9
    assert (step.local.adjustment, step.local.temperature) == (1.5, 0.75)
    assert step.whole.options == options and step.neighbors.shape == (images, 4)
    group = fit.optimizer.param_groups[0]
    assert (type(fit.optimizer), group["lr"], group["weight_decay"]) == (
        torch.optim.Adam,
        2e-3,
        3e-3,
    )
    trained = [p for p in fit.network.parameters() if p.requires_grad]
    assert [id(p) for p in group["params"]] == [id(p) for p in trained]
    assert fit.step == "step" and fit.resume and fit.images == images
    assert vars(fit.plan) == vars(
        replace(
            fit.plan, epochs=11, batch_size=batch, lr=2e-3, warmup=2 * (images // batch),
            schedule="cosine", accumulate=2, precision="bfloat16", ema=0.6, save_every=4,
            evaluate_every=5, seed=9, stop=0, steps=0,
        )
    )  # fmt: skip
    assert fit.extras["criterion_local"] is step.local
    assert fit.extras["criterion_global"] is step.whole
    assert fit.evaluate is fit.extras["val_predictions"] and fit.evaluate.threshold == 0.35


def test_every_setting_reaches_the_training(clean, data, tmp_path, script, called):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    flags = {"REWEIGHT": False, "REWEIGHT_RENORM": True, "MEAN_OUTSIDE_MASK": False}
    settings = SETTINGS | {f"USLT_PRETRAIN.{key}": value for key, value in flags.items()}
    argv = (word for pair in settings.items() for word in pair)
    with pytest.raises(Stop):
        script(PRETRAIN, *pretraining(data, neighbors, tmp_path), *argv)
    check_called(called, images=80, batch=16, options=GlobalOptions(0.35, False, True, False))
    chain = called.uslt_step.chain
    assert chain == ScanChain(flip=0.25, fill=NORMALIZATION["SCAN-cifar10"][0])
    assert called.fit.after_step is None and called.uslt_step.whole.images == 0
    # Linear heads on a backbone that is trained as well, from its checkpoint.
    network, pretext = called.fit.network, torch.load(data / "pretext.pth.tar")
    assert not network.frozen and all(p.requires_grad for p in network.parameters())
    assert torch.equal(network.backbone.conv1.weight, pretext["module.backbone.conv1.weight"])
    assert [head.bias.shape for head in network.cluster_head] == [(CLUSTERS,)] * 3


def test_heads_alone_are_trained_on_request(clean, data, tmp_path, script):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    options = ("USLT_PRETRAIN.UPDATE_HEAD_ONLY", True, "EPOCHS", 1)
    script(PRETRAIN, *pretraining(data, neighbors, tmp_path), *options)
    pretext = torch.load(data / "pretext.pth.tar")
    model = load(tmp_path)["model"]
    for name, value in model.items():
        if name.startswith("backbone."):
            assert torch.equal(value, pretext[f"module.{name}"]), name
    torch.manual_seed(42)
    for name, value in new_heads(64, CLUSTERS, cosine=False).state_dict().items():
        assert not torch.equal(value, model[f"cluster_head.{name}"])
        # Five steps of Adam at most.
        assert (value - model[f"cluster_head.{name}"]).abs().max() < 5.5e-3


def test_the_weight_average_is_what_selection_takes(clean, data, tmp_path, script, capsys):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    options = ("USLT_PRETRAIN.EMA_DECAY", 0.9, "EPOCHS", 1)
    script(PRETRAIN, *pretraining(data, neighbors, tmp_path / "trained"), *options)
    content = load(tmp_path / "trained")
    assert set(content["ema_model"]) == set(content["model"])
    capsys.readouterr()
    script(SELECT, *selection(data, tmp_path / "trained" / "checkpoint.pth", tmp_path / "picked"))
    features = np.load(tmp_path / "picked" / "memory_feats_list.npy")
    expected = by_hand(features, content["ema_model"], head=0, mean=True, budget=CLUSTERS)
    assert printed(capsys.readouterr().out) == expected


def random_statistics(network):
    """Batch norm that has seen something, so that a network in eval mode is no identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A few images in CIFAR's format, and a checkpoint in the form of cifar10_usl_t_3_heads.pth."""
    root = make_cifar(tmp_path_factory.mktemp("released"), per_file=6)
    torch.manual_seed(3)
    heads = new_heads(512, CLUSTERS, cosine=False)
    network = random_statistics(UsltNetwork(CifarResNet(), heads))
    with torch.no_grad():
        for head in heads:
            head.weight.mul_(30)
            # Nobody is in this cluster.
            head.bias[4] = -1000
    content = {
        "model": network.state_dict(),
        "ema_model": None,
        "optimizer": {
            "state": {0: {"step": torch.tensor(9.0), "exp_avg": torch.zeros(3)}},
            "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}],
        },
        "epoch": np.int64(199),
        "criterion_local": {"prob_ema": torch.full((3, CLUSTERS), 1 / CLUSTERS)},
        "criterion_global": {"num_counts": torch.zeros(1)},
        "val_predictions": [{"predictions": torch.zeros(6), "probabilities": torch.zeros(6, 3)}],
    }
    torch.save(content, root / "cifar10_usl_t_3_heads.pth")
    return root, network.eval()


@pytest.fixture(scope="module")
def released_features(released):
    """What its backbone makes of the images, from CIFAR's files."""
    root, network = released
    files = [root / "cifar-10-batches-py" / f"data_batch_{i}" for i in range(1, 6)]
    images = np.concatenate([pickle.loads(file.read_bytes())["data"] for file in files])
    x = torch.from_numpy(images.reshape(-1, 3, 32, 32) / 255).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in NORMALIZATION["SCAN-cifar10"])
    with torch.inference_mode():
        return network.backbone((x - mean) / std).numpy()


@pytest.mark.parametrize(
    ("head", "mean", "budget"), [(0, True, 0), (0, False, 3), (2, True, 9), (1, False, 30)]
)
def test_released_checkpoints_give_the_picks_computed_by_hand(
    released, released_features, tmp_path, script, capsys, head, mean, budget
):
    root, network = released
    np.save(tmp_path / "memory_feats_list.npy", released_features)
    # The features are computed once, in the first case; then taken from a file.
    reuse = budget != 0
    script(
        SELECT, "--cfg", "configs/cifar10_usl-t.yaml", "--opts", "DATASET.ROOT_DIR", root,
        "MODEL.PRETRAIN_PATH", root / "cifar10_usl_t_3_heads.pth", "RUN_DIR", tmp_path,
        "USLT.NUM_SELECTED_SAMPLES", budget, "USLT.HEAD_IN_USE", head, "USLT.USE_MEAN_PROB", mean,
        "USLT.NUM_CLUSTERS", 0, "RECOMPUTE_ALL", not reuse,
    )  # fmt: skip
    found = printed(capsys.readouterr().out)
    budget = budget or CLUSTERS
    assert np.load(tmp_path / f"selected_indices_{budget}_{head}.npy").tolist() == found
    model = network.state_dict()
    assert found == by_hand(released_features, model, head=head, mean=mean, budget=budget)
    assert len(set(found)) == budget
    if not reuse:
        features = np.load(tmp_path / "memory_feats_list.npy")
        np.testing.assert_allclose(features, released_features, rtol=1e-4, atol=1e-5)


def test_resnet18_is_trained_into_the_released_layout(tmp_path, script, capsys):
    root = make_cifar(tmp_path / "data", per_file=2)
    torch.manual_seed(1)
    torch.save(PretextEncoder().state_dict(), root / "pretext.pth.tar")
    np.save(root / "n.npy", np.stack([np.arange(10), np.arange(10) ^ 1], axis=1))
    script(
        PRETRAIN, *pretraining(root, root / "n.npy", tmp_path / "run"), "MODEL.ARCH", "ResNet18",
        "MODEL.BACKBONE_DIM", 512, "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 40, "EPOCHS", 1,
        "DATALOADER.BATCH_SIZE", 10, "USLT_PRETRAIN.NUM_NEIGHBORS", 1,
    )  # fmt: skip
    shapes = {k: list(v.shape) for k, v in load(tmp_path / "run")["model"].items()}
    assert shapes == NAMES["uslt_cifar10"]
    assert "only " in capsys.readouterr().err


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
def test_neighbours_of_another_data_set(clean, data, tmp_path, script, name):
    change, message = BAD_NEIGHBORS[name]
    if change is not None:
        mined = np.load(clean[0] / "mined" / "topk-train-neighbors.npy")
        np.save(tmp_path / "n.npy", change(mined))
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(data, tmp_path / "n.npy", tmp_path / "run"))
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
                "USLT_PRETRAIN.GLOBAL_START_EPOCH", 3,
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
        (("USLT_PRETRAIN.EMA_DECAY", 1), "an EMA decay of 1.0; choose 0 to below 1"),
        (("DATALOADER.BATCH_SIZE", 81), "DATALOADER.BATCH_SIZE is 81; choose 2 to 80, the images"),
        (("EPOCHS", 0), "0 epochs and 0 steps; choose at least 1"),
        (("OPTIMIZER.LR", -1), "OPTIMIZER.LR is -1.0; choose a positive number"),
        (("RESUME", "maybe"), "RESUME is 'maybe'; choose auto or none"),
        (("MODEL.ARCH", "pixels"), "unknown MODEL.ARCH 'pixels'; choose one of ResNet18, Sma"),
        (("MODEL.ARCH", "ResNet18"), "pretext.pth.tar is of another network; missing: "),
        (("MODEL.BACKBONE_DIM", 512), "MODEL.BACKBONE_DIM is 512, SmallResNet has 64"),
        (("MODEL.PRETRAIN_PATH", ""), "MODEL.PRETRAIN_PATH is empty; SmallResNet needs a chec"),
        (("MODEL.PRETRAIN_PATH", "no.pth"), "there is no checkpoint .MODEL.PRETRAIN_PATH.; put no"),
        (("DATASET.TRANSFORM_NAME", "x"), "unknown DATASET.TRANSFORM_NAME 'x'"),
        (("AUGMENT.BACKEND", "gimp"), "unknown AUGMENT.BACKEND 'gimp'; choose auto, batch"),
        (("AUGMENT.FLIP", 2), "the probability flip is 2.0; choose 0 to 1"),
        (("USLT.HEAD_IN_USE", 0), "USLT is a setting of another stage"),
    ],
)  # fmt: skip
def test_bad_settings_of_training(clean, data, tmp_path, script, options, message):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(data, neighbors, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def test_pretext_checkpoints_that_do_not_fit(clean, data, tmp_path, script):
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    good = torch.load(data / "pretext.pth.tar")
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
            argv = pretraining(data, neighbors, tmp_path / "run")
            script(PRETRAIN, *argv, "MODEL.PRETRAIN_PATH", tmp_path / "p.pth")
        assert not (tmp_path / "run").exists()


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(
    clean, data, tmp_path, script, monkeypatch
):
    forward, calls = LocalCriterion.forward, []

    def spoiled(self, *views):
        calls.append(self)
        return forward(self, *views) * (math.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(LocalCriterion, "forward", spoiled)
    neighbors = clean[0] / "mined" / "topk-train-neighbors.npy"
    message = f"the loss is nan before step 10; the last good checkpoint is {tmp_path}/checkpoint"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(data, neighbors, tmp_path))
    kept = load(tmp_path)
    assert kept["step"] == 5 and all(v.isfinite().all() for v in kept["model"].values())
    # A rate that is too high ends the same way, before anything was saved.
    monkeypatch.undo()
    with pytest.raises(
        InputError, match="before step 5; nothing was saved yet; lower OPTIMIZER.LR"
    ):
        argv = pretraining(data, neighbors, tmp_path / "high")
        script(PRETRAIN, *argv, "OPTIMIZER.LR", "1e30")
    assert not (tmp_path / "high" / "checkpoint.pth").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USLT.HEAD_IN_USE", 3), "USLT.HEAD_IN_USE is 3; the checkpoint has heads 0 to 2"),
        (("USLT.HEAD_IN_USE", -1), "USLT.HEAD_IN_USE is -1; the checkpoint has heads 0 to 2"),
        (("USLT.NUM_CLUSTERS", 7), "USLT.NUM_CLUSTERS is 7, and .*checkpoint.pth has 6; 0 tak"),
        (("USLT.NUM_SELECTED_SAMPLES", 81), "a budget of 81 picks from 80 images; choose 1 to 80"),
        (("USLT.NUM_SELECTED_SAMPLES", -1), "a budget of -1 picks"),
        (("MODEL.PRETRAIN_PATH", ""), "MODEL.PRETRAIN_PATH is empty"),
        (
            ("MODEL.PRETRAIN_PATH", ROOT / "usl-t_pretraining/saved/nothing/checkpoint.pth"),
            "or run the script in usl-t_pretraining that makes it",
        ),
        (("MODEL.ARCH", "ResNet18"), "checkpoint.pth is of another network"),
        (("USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 3), "USLT_PRETRAIN is a setting of another stage"),
    ],
)  # fmt: skip
def test_bad_settings_of_selection(clean, data, tmp_path, script, options, message):
    checkpoint = clean[0] / "trained" / "checkpoint.pth"
    with pytest.raises(InputError, match=message):
        script(SELECT, *selection(data, checkpoint, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def test_a_number_of_clusters_that_agrees(clean, data, tmp_path, script, capsys):
    checkpoint = clean[0] / "trained" / "checkpoint.pth"
    options = ("USLT.NUM_CLUSTERS", CLUSTERS, "SKIP_SAVE", True)
    script(SELECT, *selection(data, checkpoint, tmp_path / "run"), *options)
    assert printed(capsys.readouterr().out) == printed(clean[3].stdout)
    assert not (tmp_path / "run").exists()


def test_selection_with_a_checkpoint_that_has_no_heads(data, tmp_path, script):
    torch.manual_seed(0)
    cld = {f"module.{k}": v for k, v in CldNetwork(**SIZES).state_dict().items()}
    torch.save({"model": cld}, tmp_path / "cld.pth")
    for path in (tmp_path / "cld.pth", data / "pretext.pth.tar"):
        with pytest.raises(InputError, match="has no clustering heads; give one that usl-t_pretra"):
            script(SELECT, *selection(data, path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_features_that_the_heads_have_not_seen(clean, data, tmp_path, script):
    checkpoint = clean[0] / "trained" / "checkpoint.pth"
    np.save(tmp_path / "memory_feats_list.npy", np.ones((80, 63), np.float32))
    argv = selection(data, checkpoint, tmp_path)
    with pytest.raises(InputError, match=r"has shape \(80, 63\), needed is \(80, 64\)"):
        script(SELECT, *argv, "RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False)
    content = load(clean[0] / "trained")
    for head in range(3):
        name = f"cluster_head.{head}.weight"
        content["model"][name] = content["model"][name][:, :63].clone()
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match="features have 64 columns, and the heads .* see 63; giv"):
        script(SELECT, *selection(data, tmp_path / "other.pth", tmp_path / "run"))


@pytest.mark.parametrize("options", [("MODEL.FEATURES", "backbone"), ("MODEL.ARCH", "pixels")])
def test_heads_see_the_features_that_they_were_trained_on(clean, data, tmp_path, script, options):
    checkpoint = clean[0] / "trained" / "checkpoint.pth"
    with pytest.raises(
        InputError, match="the heads of USL-T were trained on those of its own network"
    ):
        script(SELECT, *selection(data, checkpoint, tmp_path / "run"), *options)


def settings_of(name, defaults, stem):
    return config.parse(defaults(), ["--cfg", f"{stem}.yaml"], script=str(folder_of(name) / name))


@pytest.mark.parametrize("stem", ["digits", "fashion-mnist", "fashion-mnist-folder"])
def test_the_readmes_configs_chain_without_editing(stem):
    form = "_imagenet" if stem.endswith("folder") else ""
    defaults = [getattr(config, f"uslt{form}{what}_defaults") for what in ("_pretrain", "")]
    mined = settings_of(MINE, config.mine_defaults, f"{stem}_neighbors")
    trained = settings_of(PRETRAIN, defaults[0], f"{stem}_usl-t_pretrain")
    chosen = settings_of(SELECT, defaults[1], f"{stem}_usl-t")

    def same(read, written):
        assert Path(read).resolve() == Path(written).resolve()

    uslt = trained.USLT_PRETRAIN
    same(uslt.TOPK_NEIGHBORS_PATH, Path(mined.RUN_DIR) / "topk-train-neighbors.npy")
    same(chosen.MODEL.PRETRAIN_PATH, Path(trained.RUN_DIR) / "checkpoint.pth")
    same(trained.MODEL.PRETRAIN_PATH, mined.MODEL.PRETRAIN_PATH)
    for key in ("NAME", "ROOT_DIR", "TRANSFORM_NAME"):
        assert mined.DATASET[key] == trained.DATASET[key] == chosen.DATASET[key]
    assert {c.MODEL.ARCH for c in (mined, trained, chosen)} == {"SmallResNet"}
    assert chosen.USLT.NUM_CLUSTERS in (0, uslt.NUM_SELECTED_SAMPLES)


def test_errors_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch):
    for name in (MINE, PRETRAIN, SELECT, FOLDER_PRETRAIN, FOLDER_SELECT):
        monkeypatch.setattr(sys, "argv", [name, "--opts", "RUN_DIR", str(tmp_path), "NO_SUCH", "1"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(folder_of(name) / name), run_name="__main__")
        out = capsys.readouterr()
        assert stop.value.code == 2 and out.out == "" and not list(tmp_path.iterdir())
        assert out.err.startswith("error: --opts: unknown key NO_SUCH; ")
        assert out.err.count("\n") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images in ImageNet's layout, neighbours, and a pretext checkpoint of a tiny network."""
    root = tmp_path_factory.mktemp("folder")
    random = np.random.RandomState(0)
    kinds = random.randint(40, 216, (4, 1, 1, 3))
    for split, count in (("train", 9), ("val", 3)):
        for kind, name in enumerate("abcd"):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                noise = random.randint(-40, 41, (40 + number, 45, 3))
                image = Image.fromarray((kinds[kind] + noise).astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    torch.manual_seed(0)
    encoder = random_statistics(PretextEncoder(**SIZES))
    torch.save(encoder.state_dict(), root / "pretext.pth.tar")
    np.save(
        root / "n.npy", (np.arange(36)[:, None] // 9 * 9) + (np.arange(36)[:, None] + range(6)) % 9
    )
    return root


FOLDER = ("DATASET.NAME", "folder", "DATASET.IMAGE_SIZE", 32, *TINY)


def folder_pretraining(root, run):
    return (
        "--cfg", "configs/ImageNet100_usl-t_pretrain.yaml", "--opts", *FOLDER,
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", root / "pretext.pth.tar", "RUN_DIR", run,
        "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH", root / "n.npy", "USLT_PRETRAIN.NUM_NEIGHBORS", 5,
        "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 5, "USLT_PRETRAIN.REASSIGN_AFTER_STEPS", 2,
        "USLT_PRETRAIN.COUNT_EMA_MIN_TH", 3, "USLT_PRETRAIN.COUNT_EMA_MAX_TH", 5,
        "EPOCHS", 3, "DATALOADER.BATCH_SIZE", 12, "OPTIMIZER.LR", 1e-3, "DATALOADER.WORKERS", 1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder_run(folder, tmp_path_factory):
    """A training on it that nothing disturbed."""
    run = tmp_path_factory.mktemp("run")
    argv = [str(word) for word in folder_pretraining(folder, run)]
    argv[1] = str(ROOT / "usl-t_pretraining" / argv[1])
    runpy.run_path(str(folder_of(FOLDER_PRETRAIN) / FOLDER_PRETRAIN))["main"](argv)
    return run


def test_training_on_a_folder_leaves_the_encoder_alone(folder, folder_run):
    content = load(folder_run)
    pretext = torch.load(folder / "pretext.pth.tar")
    assert all(torch.equal(content["model"][f"backbone.{k}"], v) for k, v in pretext.items())
    heads = [k for k in content["model"] if k.startswith("cluster_head.")]
    assert heads == [f"cluster_head.{h}.weight" for h in range(3)]
    assert content["criterion_global"]["count_ema"].shape == (3, 5)
    assert "heads gave half of a large cluster to a small" in (folder_run / "run.log").read_text()


def test_every_setting_reaches_the_training_on_a_folder(folder, tmp_path, script, called):
    flags = {"REWEIGHT": True, "REWEIGHT_RENORM": False, "MEAN_OUTSIDE_MASK": True}
    moved = {"REASSIGN_AFTER_STEPS": 6, "COUNT_EMA_MIN_TH": 8, "COUNT_EMA_MAX_TH": 10}
    settings = SETTINGS | {f"USLT_PRETRAIN.{k}": v for k, v in (flags | moved).items()}
    argv = (word for pair in settings.items() for word in pair)
    with pytest.raises(Stop):
        script(FOLDER_PRETRAIN, *folder_pretraining(folder, tmp_path), *argv)
    check_called(called, images=36, batch=12, options=GlobalOptions(0.35, True, False, True))
    assert called.uslt_step.chain == MocoChain(size=32, flip=0.25)
    whole, network = called.uslt_step.whole, called.fit.network
    assert called.fit.after_step == "after" and called.reassigning.seed == 9
    assert called.reassigning.reassignment == Reassignment(6, 8, 10)
    assert called.reassigning.whole is whole and whole.images == 36
    assert called.reassigning.network is network and network.frozen

    # Cosine heads start from the features of the first images that will be seen.
    images = datasets.open_dataset("folder", folder, side=32)
    encoder = PretextEncoder(**SIZES).eval()
    encoder.load_state_dict(torch.load(folder / "pretext.pth.tar"))
    features = extract(encoder, images, transform="imagenet100", batch_size=36)
    first = features[permutation(36, seed=9, epoch=0)[:15].numpy()]
    weights = torch.cat([head.weight for head in network.cluster_head]).detach().numpy()
    np.testing.assert_allclose(weights, first, rtol=1e-4, atol=1e-5)


def test_eval_only_on_a_folder(folder, folder_run, script, capsys):
    before = {p: p.stat().st_mtime_ns for p in folder_run.rglob("*")}
    script(FOLDER_PRETRAIN, *folder_pretraining(folder, folder_run), "EVAL_ONLY", True)
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder_run.rglob("*")} == before
    names, *_, last = [
        line.split(",") for line in (folder_run / "metrics.csv").read_text().splitlines()
    ]
    for kind in ("live/0", "macc/1", "entropy/2"):
        assert f"{kind}: {float(last[names.index(kind)]):.4g}\n" in out


def test_two_processes_train_on_a_folder_as_one_does(folder, tmp_path, script, capsys):
    # Without a reassignment: of clusters that are 1e-7 apart, rounding decides which one an image
    # belongs to, and the gradients are added up in another order.
    def argv(run):
        words = folder_pretraining(folder, tmp_path / run)
        return [*map(str, words), "USLT_PRETRAIN.REASSIGN_AFTER_STEPS", "9"]

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", FOLDER_PRETRAIN, *argv("two")],
        cwd=folder_of(FOLDER_PRETRAIN),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    script(FOLDER_PRETRAIN, *argv("one"))
    two, one = load(tmp_path / "two"), load(tmp_path / "one")
    for key in ("model", "criterion_local", "criterion_global"):
        for name, value in one[key].items():
            torch.testing.assert_close(two[key][name], value, rtol=1e-5, atol=1e-6)
    for a, b in zip(two["metrics"], one["metrics"], strict=True):
        a.pop("images_per_second"), b.pop("images_per_second")
        assert a == pytest.approx(b, rel=1e-4)
    # Both see the images to choose from the same way, and one process says so.
    assert len(re.findall("training images.*", done.stdout)) == 3
    seen = re.findall("training images.*", capsys.readouterr().out)
    assert seen == re.findall("training images.*", done.stdout)


def test_training_on_a_folder_killed_and_resumed(folder, folder_run, tmp_path, script, monkeypatch):
    forward, calls = LocalCriterion.forward, []

    def dying(self, *views):
        calls.append(self)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return forward(self, *views)

    monkeypatch.setattr(LocalCriterion, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        script(FOLDER_PRETRAIN, *folder_pretraining(folder, tmp_path))
    assert load(tmp_path)["step"] == 6
    script(FOLDER_PRETRAIN, *folder_pretraining(folder, tmp_path))
    equal_training(load(tmp_path), load(folder_run))


def test_too_few_images_for_the_heads(folder, tmp_path, script):
    argv = folder_pretraining(folder, tmp_path / "run")
    with pytest.raises(
        InputError, match="3 heads of 13 clusters start from 39 images, and there a"
    ):
        script(FOLDER_PRETRAIN, *argv, "USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 13)
    assert not (tmp_path / "run").exists()


def cosine_by_hand(features, model, head, budget):
    """Clusters, spread and picks of the ImageNet form, in float64."""
    x = features.astype(np.float64)
    weight = model[f"cluster_head.{head}.weight"].double().numpy()
    cosines = (x @ weight.T) / np.linalg.norm(weight, axis=1) / np.linalg.norm(x, axis=1)[:, None]
    clusters = cosines.argmax(axis=1)
    spread = oracle.neighbors(features, 20)[0].mean(axis=1)
    sizes = np.bincount(clusters)
    members = {
        c: sorted(np.flatnonzero(clusters == c), key=lambda i: (spread[i], i)) for c in clusters
    }
    order = sorted(members, key=lambda c: (-sizes[c], c))
    rows = [(k, c) for k in range(len(x)) for c in order if k < len(members[c])]
    return clusters, spread, [int(members[c][k]) for k, c in rows[:budget]]


def folder_selection(root, checkpoint, run):
    return (
        "--cfg", "configs/ImageNet100_usl-t_0.3.yaml", "--opts", *FOLDER, "RUN_NAME", "mine",
        "DATASET.ROOT_DIR", root, "MODEL.PRETRAIN_PATH", checkpoint, "RUN_DIR", run,
        "USLT.NUM_PSEUDO_LABELS_PER_CLUSTER", 2, "USLT.NUM_CLUSTERS", 0,
        "DATALOADER.BATCH_SIZE", 16, "DATALOADER.WORKERS", 1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USLT.KNN_K", 0), "USLT.KNN_K is 0; choose 1 to 36, the number of images"),
        (("USLT.KNN_K", 37), "USLT.KNN_K is 37; choose 1 to 36, the number of images"),
        (("KNN.BACKEND", "abacus"), "'abacus'"),
        (("USLT.LABELS_PATH", "no.csv"), "there is no file of answers .USLT.LABELS_PATH."),
        (("USLT.NUM_PSEUDO_LABELS_PER_CLUSTER", 0), "choose at least 1, the pick itself"),
    ],
)
def test_bad_settings_of_selection_from_a_folder(
    folder, folder_run, tmp_path, script, options, message
):
    argv = folder_selection(folder, folder_run / "checkpoint.pth", tmp_path / "run")
    with pytest.raises(InputError, match=message):
        script(FOLDER_SELECT, *argv, "USLT.NUM_SELECTED_SAMPLES", 4, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("head", "budget"), [(0, 4), (1, 0), (2, 20)])
def test_picks_and_pseudo_labels_of_a_folder(
    folder, folder_run, tmp_path, script, capsys, head, budget
):
    options = ("USLT.NUM_SELECTED_SAMPLES", budget, "USLT.HEAD_IN_USE", head)
    checkpoint = folder_run / "checkpoint.pth"
    if head == 1:
        # In the form of the released ones.
        content = {"model": {f"module.{k}": v for k, v in load(folder_run)["model"].items()}}
        content |= {"epoch": np.int64(9), "ema_model": None}
        checkpoint = tmp_path / "imagenet_usl_t.pth"
        torch.save(content, checkpoint)
    argv = folder_selection(folder, checkpoint, tmp_path)
    script(FOLDER_SELECT, *argv, *options)
    found, budget = printed(capsys.readouterr().out), budget or 5
    features = np.load(tmp_path / "memory_feats_list.npy")
    clusters, spread, expected = cosine_by_hand(features, load(folder_run)["model"], head, budget)
    assert found == expected and len(set(found)) == budget
    assert np.load(tmp_path / f"selected_indices_{budget}_{head}.npy").tolist() == found

    # The label of the first pick of a cluster for its two densest images; every pick its own.
    given = {}
    for pick in reversed(found):
        same = sorted(np.flatnonzero(clusters == clusters[pick]), key=lambda i: (spread[i], i))
        given |= {int(i): pick // 9 for i in same[:2]}
    given |= {pick: pick // 9 for pick in found}
    name = "mine" + (f"_seed{head}" if head else "")
    share = f"{100 * budget / 36:.4g}"
    rows = [["Index", "ImageID", "Pseudolabel"]]
    rows += [[str(i), f"{'abcd'[i // 9]}/{i % 9}.png", str(given[i])] for i in sorted(given)]
    text = (tmp_path / f"train_{share}p_gen_{name}_index.csv").read_text()
    assert [line.split(",") for line in text.splitlines()] == rows
    (rest,) = set(tmp_path.glob("train_*.csv")) - {
        tmp_path / f"train_{share}p_gen_{name}_index.csv"
    }
    others = [line.split(",") for line in rest.read_text().splitlines()[1:]]
    assert [int(row[0]) for row in others] == [i for i in range(36) if i not in given]
    assert {row[2] for row in others} == {"-1"}


def test_a_folder_without_labels_and_the_answers_of_a_person(
    folder, folder_run, tmp_path, script, capsys
):
    flat = tmp_path / "flat"
    for split in ("train", "val"):
        (flat / split).mkdir(parents=True)
        for path in (folder / split).glob("*/*.png"):
            (flat / split / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    argv = folder_selection(folder, folder_run / "checkpoint.pth", tmp_path / "labelled")
    script(FOLDER_SELECT, *argv, "USLT.NUM_SELECTED_SAMPLES", 4)
    picks = printed(capsys.readouterr().out)
    argv = folder_selection(flat, folder_run / "checkpoint.pth", tmp_path / "run")
    argv = (*argv, "USLT.NUM_SELECTED_SAMPLES", 4)
    script(FOLDER_SELECT, *argv)
    out = capsys.readouterr().out
    assert printed(out) == picks and "accuracy" not in out
    text = (tmp_path / "run" / "train_11.11p_gen_mine_index.csv").read_text()
    assert text.splitlines()[0] == "Index,ImageID" and len(text.splitlines()) == 5

    answers = tmp_path / "answers.csv"
    answers.write_text("Index,Label\n" + "".join(f"{pick},{pick // 9}\n" for pick in picks))
    script(FOLDER_SELECT, *argv, "USLT.LABELS_PATH", answers)
    text = (tmp_path / "run" / "train_11.11p_gen_mine_index.csv").read_text()
    labelled = (tmp_path / "labelled" / "train_11.11p_gen_mine_index.csv").read_text()
    assert text == re.sub(r"([abcd])/", r"\1", labelled)
    answers.write_text("Index,Label\n" + "".join(f"{pick},0\n" for pick in picks[1:]))
    with pytest.raises(InputError, match=f"no answer for 1 of 4 picks, such as image {picks[0]}"):
        script(FOLDER_SELECT, *argv, "USLT.LABELS_PATH", answers)
