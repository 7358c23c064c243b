"""Selection by USL-T's script for small images, by hand and with bad settings."""

import pickle

import numpy as np
import pytest
import torch
from commands import CLUSTERS, SELECT, selection
from helpers import ROOT, load, make_cifar, printed_alone, random_statistics
from oracles.uslt import by_hand

from usl import InputError
from usl.models.resnet_cifar import CifarResNet, CldNetwork, small_resnet
from usl.models.uslt import UsltNetwork, new_heads

pytestmark = pytest.mark.usefixtures("no_pictures")


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
    mean = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
    std = torch.tensor([0.2023, 0.1994, 0.2010])[:, None, None]
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
    found = printed_alone(capsys.readouterr().out)
    budget = budget or CLUSTERS
    assert np.load(tmp_path / f"selected_indices_{budget}_{head}.npy").tolist() == found
    model = network.state_dict()
    assert found == by_hand(released_features, model, head=head, mean=mean, budget=budget)
    assert len(set(found)) == budget
    if not reuse:
        features = np.load(tmp_path / "memory_feats_list.npy")
        np.testing.assert_allclose(features, released_features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USLT.HEAD_IN_USE", 3), "USLT.HEAD_IN_USE is 3; the checkpoint has heads 0 to 2"),
        (("USLT.HEAD_IN_USE", -1), "USLT.HEAD_IN_USE is -1; the checkpoint has heads 0 to 2"),
        (("USLT.NUM_CLUSTERS", 7), "USLT.NUM_CLUSTERS is 7, and .*checkpoint.pth has 6; 0 tak"),
        (("USLT.NUM_SELECTED_SAMPLES", 81), "a budget of 81 picks from 80 images; choose 1 to 80"),
        (("USLT.NUM_SELECTED_SAMPLES", -1), "a budget of -1 picks"),
        (("MODEL.PRETRAIN_PATH", ""), "encoder SmallResNet needs a MODEL.PRETRAIN_PATH; give one"),
        (
            ("MODEL.PRETRAIN_PATH", ROOT / "usl-t_pretraining/saved/nothing/checkpoint.pth"),
            "or run the script in usl-t_pretraining that makes it",
        ),
        (("MODEL.ARCH", "ResNet18"), "checkpoint.pth is of another network"),
        (("USLT_PRETRAIN.NUM_SELECTED_SAMPLES", 3), "USLT_PRETRAIN is a setting of another stage"),
    ],
)  # fmt: skip
def test_bad_settings_of_selection(chained, tiny_cifar, tmp_path, script, options, message):
    checkpoint = chained[0] / "trained" / "checkpoint.pth"
    with pytest.raises(InputError, match=message):
        script(SELECT, *selection(tiny_cifar, checkpoint, tmp_path / "run"), *options)
    assert not (tmp_path / "run").exists()


def test_a_number_of_clusters_that_agrees(chained, tiny_cifar, tmp_path, script, capsys):
    checkpoint = chained[0] / "trained" / "checkpoint.pth"
    options = ("USLT.NUM_CLUSTERS", CLUSTERS, "SKIP_SAVE", True)
    script(SELECT, *selection(tiny_cifar, checkpoint, tmp_path / "run"), *options)
    assert printed_alone(capsys.readouterr().out) == printed_alone(chained[3].stdout)
    assert not (tmp_path / "run").exists()


def test_selection_with_a_checkpoint_that_has_no_heads(tiny_cifar, tmp_path, script):
    torch.manual_seed(0)
    cld = {f"module.{k}": v for k, v in CldNetwork(**small_resnet(2, 10)).state_dict().items()}
    torch.save({"model": cld}, tmp_path / "cld.pth")
    for path in (tmp_path / "cld.pth", tiny_cifar / "pretext.pth.tar"):
        with pytest.raises(InputError, match="has no clustering heads; give one that usl-t_pretra"):
            script(SELECT, *selection(tiny_cifar, path, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_features_that_the_heads_have_not_seen(chained, tiny_cifar, tmp_path, script):
    checkpoint = chained[0] / "trained" / "checkpoint.pth"
    np.save(tmp_path / "memory_feats_list.npy", np.ones((80, 63), np.float32))
    argv = selection(tiny_cifar, checkpoint, tmp_path)
    with pytest.raises(InputError, match=r"has shape \(80, 63\), needed is \(80, 64\)"):
        script(SELECT, *argv, "RECOMPUTE_ALL", False, "RECOMPUTE_NUM_DEP", False)
    content = load(chained[0] / "trained")
    for head in range(3):
        name = f"cluster_head.{head}.weight"
        content["model"][name] = content["model"][name][:, :63].clone()
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(InputError, match="features have 64 columns, and the heads .* see 63; giv"):
        script(SELECT, *selection(tiny_cifar, tmp_path / "other.pth", tmp_path / "run"))


@pytest.mark.parametrize("options", [("MODEL.FEATURES", "backbone"), ("MODEL.ARCH", "pixels")])
def test_heads_see_the_features_that_they_were_trained_on(
    chained, tiny_cifar, tmp_path, script, options
):
    checkpoint = chained[0] / "trained" / "checkpoint.pth"
    with pytest.raises(
        InputError, match="the heads of USL-T were trained on those of its own network"
    ):
        script(SELECT, *selection(tiny_cifar, checkpoint, tmp_path / "run"), *options)
