"""Training of USL-T by its script, from neighbours to picks."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import CLUSTERS, PRETRAIN, SELECT, pretraining, selection
from helpers import STATE_DICTS, equal_training, load, make_cifar, printed_alone, reverse_labels
from oracles import selection as oracle
from oracles.uslt import by_hand

from usl import InputError
from usl.data import datasets
from usl.models.resnet_cifar import CifarResNet, PretextEncoder, small_resnet
from usl.models.uslt import new_heads

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_from_neighbours_to_picks(chained, tiny_cifar):
    root, mined, trained, picked = chained
    features = np.load(root / "mined" / "memory_feats_list.npy")
    neighbors = np.load(root / "mined" / "topk-train-neighbors.npy")
    assert features.shape == (80, 128) and neighbors.shape == (80, 21)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    assert neighbors.tolist() == oracle.neighbors(features, 21)[1].tolist()
    assert re.search(r"neighbours of the same class: \d+\.\d %", mined.stdout)

    for name in ("checkpoint.pth", "metrics.csv", "report.html", "config.yaml", "run.json"):
        assert (root / "trained" / name).exists(), name
    header = (root / "trained" / "metrics.csv").read_text().splitlines()[0].split(",")
    kinds = [
        "nonempty",
        "largest",
        "smallest",
        "above",
        "confidence",
        "entropy",
        "macc",
        "nmi",
        "ari",
    ]
    assert {f"{kind}/{head}" for kind in kinds for head in range(3)} <= set(header)
    assert {"loss", "loss_global", "loss_local"} <= set(header)
    for head in range(3):
        assert f"training images, head {head}: nonempty " in trained.stdout
    assert "curve of loss" in (root / "trained" / "report.html").read_text()

    content = load(root / "trained")
    indices = printed_alone(picked.stdout)
    assert np.load(root / "picked" / f"selected_indices_{CLUSTERS}_0.npy").tolist() == indices
    features = np.load(root / "picked" / "memory_feats_list.npy")
    assert features.shape == (80, 64)
    assert indices == by_hand(features, content["model"], head=0, mean=True, budget=CLUSTERS)
    assert len(set(indices)) == CLUSTERS and (root / "picked" / "report.html").exists()
    labels = datasets.open_dataset("cifar10", tiny_cifar).labels
    clusters = content["model"]["cluster_head.1.weight"].double().numpy() @ features.T
    clusters = clusters + content["model"]["cluster_head.1.bias"].double().numpy()[:, None]
    clusters = clusters.argmax(axis=0)
    right = sum(np.bincount(labels[clusters == c]).max() for c in set(clusters.tolist()))
    assert f"head 1: accuracy by majority label {100 * right / 80:.1f}, by the p" in picked.stdout


def test_what_is_written_has_the_released_layout(chained):
    content = load(chained[0] / "trained")
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
    before = CifarResNet(**small_resnet(2, 10)).state_dict()
    assert {f"backbone.{k}" for k in before} < set(content["model"])


def test_eval_only_prints_and_writes_nothing(chained, tiny_cifar, script, capsys):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    folder = chained[0] / "trained"
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    script(PRETRAIN, *pretraining(tiny_cifar, neighbors, folder), "EVAL_ONLY", True)
    out = capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    for head in range(3):
        assert f"training images, head {head}: nonempty " in out
        last = (folder / "metrics.csv").read_text().splitlines()
        names, values = last[0].split(","), last[-1].split(",")
        for kind in ("nonempty", "macc", "entropy"):
            value = float(values[names.index(f"{kind}/{head}")])
            assert f"{kind}/{head}: {value:.4g}\n" in out
    # The same as was printed after training.
    assert re.findall("training images.*", out) == re.findall(
        "training images.*", chained[2].stdout
    )
    with pytest.raises(InputError, match="there is no .*nowhere/checkpoint.pth; train first, or"):
        argv = pretraining(tiny_cifar, neighbors, folder / "nowhere")
        script(PRETRAIN, *argv, "EVAL_ONLY", True)
    assert not (folder / "nowhere").exists()


def test_shuffled_labels_change_nothing(chained, tiny_cifar, tmp_path, script, capsys):
    make_cifar(tmp_path, per_file=16)
    reverse_labels(tmp_path)
    (tmp_path / "pretext.pth.tar").write_bytes((tiny_cifar / "pretext.pth.tar").read_bytes())
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    script(PRETRAIN, *pretraining(tmp_path, neighbors, tmp_path / "trained"))
    equal_training(load(tmp_path / "trained"), load(chained[0] / "trained"))
    out = capsys.readouterr().out
    assert re.findall("nonempty/0.*", out) == re.findall("nonempty/0.*", chained[2].stdout)
    assert re.findall(r"macc [\d.]+", out) != re.findall(r"macc [\d.]+", chained[2].stdout)
    checkpoint = tmp_path / "trained" / "checkpoint.pth"
    script(SELECT, *selection(tmp_path, checkpoint, tmp_path / "picked"))
    assert printed_alone(capsys.readouterr().out) == printed_alone(chained[3].stdout)


def test_without_labels_the_picks_come_out_all_the_same(
    chained, tiny_cifar, tmp_path, script, capsys, monkeypatch
):
    opened = datasets.DATASETS["cifar10"]
    monkeypatch.setitem(
        datasets.DATASETS, "cifar10", lambda *a, **o: replace(opened(*a, **o), labels=None)
    )
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path / "trained"))
    equal_training(load(tmp_path / "trained"), load(chained[0] / "trained"))
    out = capsys.readouterr().out
    assert "nonempty/0: " in out and "macc" not in out
    script(
        SELECT, *selection(tiny_cifar, tmp_path / "trained" / "checkpoint.pth", tmp_path / "picked")
    )
    out = capsys.readouterr().out
    assert printed_alone(out) == printed_alone(chained[3].stdout)
    assert "accuracy" not in out and "class counts" not in out


def test_heads_alone_are_trained_on_request(chained, tiny_cifar, tmp_path, script):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    options = ("USLT_PRETRAIN.UPDATE_HEAD_ONLY", True, "EPOCHS", 1)
    script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path), *options)
    pretext = torch.load(tiny_cifar / "pretext.pth.tar")
    model = load(tmp_path)["model"]
    for name, value in model.items():
        if name.startswith("backbone."):
            assert torch.equal(value, pretext[f"module.{name}"]), name
    torch.manual_seed(42)
    for name, value in new_heads(64, CLUSTERS, cosine=False).state_dict().items():
        assert not torch.equal(value, model[f"cluster_head.{name}"])
        # Five steps of Adam at most.
        assert (value - model[f"cluster_head.{name}"]).abs().max() < 5.5e-3


def test_selection_takes_the_trained_weights_or_their_average(
    chained, tiny_cifar, tmp_path, script, capsys
):
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    options = ("USLT_PRETRAIN.EMA_DECAY", 0.9, "EPOCHS", 1)
    script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path / "trained"), *options)
    content = load(tmp_path / "trained")
    assert set(content["ema_model"]) == set(content["model"])
    # After so few steps both would choose alike.
    torch.manual_seed(1)
    content["ema_model"] = {
        name: torch.randn_like(weights) if name.startswith("cluster_head.") else weights
        for name, weights in content["ema_model"].items()
    }
    torch.save(content, tmp_path / "apart.pth")
    # What is printed is of those that are taken.
    said = capsys.readouterr().out
    torch.save(content, tmp_path / "trained" / "checkpoint.pth")
    argv = pretraining(tiny_cifar, neighbors, tmp_path / "trained")
    script(PRETRAIN, *argv, *options, "EVAL_ONLY", True)
    lines = re.findall("training images.*", said)
    assert lines and re.findall("training images.*", capsys.readouterr().out) == lines
    chosen, features = {}, {}
    for which, more in (("model", ()), ("ema", ("USLT.WEIGHTS", "ema"))):
        run = tmp_path / which
        capsys.readouterr()
        script(SELECT, *selection(tiny_cifar, tmp_path / "apart.pth", run), *more)
        chosen[which] = printed_alone(capsys.readouterr().out)
        features[which] = np.load(run / "memory_feats_list.npy")
        weights = content[{"model": "model", "ema": "ema_model"}[which]]
        expected = by_hand(features[which], weights, head=0, mean=True, budget=CLUSTERS)
        assert chosen[which] == expected
    assert chosen["model"] != chosen["ema"]
    assert not np.array_equal(features["model"], features["ema"])


@pytest.mark.slow
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
    assert shapes == STATE_DICTS["uslt_cifar10"]
    assert "only " in capsys.readouterr().err
