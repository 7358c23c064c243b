"""Every stage with an encoder of a library, on a folder of images."""

import numpy as np
import pytest
import timm
import torch
from commands import (
    COMPARE,
    FOLDER_PRETRAIN,
    FOLDER_SELECT,
    IMAGENET,
    MINE,
    SIMCLR,
    folder_pretraining,
    folder_selection,
    imagenet_selection,
)
from helpers import load, printed_alone, random_statistics, rows_of

from usl import InputError

pytestmark = pytest.mark.usefixtures("no_pictures")
NAME = "timm/test_resnet"
ENCODER = ("MODEL.ARCH", NAME, "MODEL.BACKBONE_DIM", 0, "DATASET.TRANSFORM_NAME", "")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    torch.manual_seed(0)
    network = random_statistics(timm.create_model("test_resnet"))
    from safetensors.torch import save_file

    save_file(network.state_dict(), path)
    return path


def embedded(root, weights, run):
    return (
        "--cfg", "configs/fashion-mnist-folder_neighbors.yaml", "--opts", *ENCODER,
        "DATASET.ROOT_DIR", root, "MODEL.FEATURES", "head", "MODEL.PRETRAIN_PATH", weights,
        "RUN_DIR", run, "NUM_NEIGHBORS", 5,
    )  # fmt: skip


def unit_features(run):
    features = np.load(run / "memory_feats_list.npy")
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_neighbours_a_selector_and_its_picks(small_folder, weights, tmp_path, script, capsys):
    script(MINE, *embedded(small_folder, weights, tmp_path / "mined"))
    unit = unit_features(tmp_path / "mined")
    distances = ((unit[:, None] - unit[None]) ** 2).sum(-1)
    mined = np.load(tmp_path / "mined" / "topk-train-neighbors.npy")
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :6]
    assert (mined[:, 0] == np.arange(36)).all() and np.array_equal(np.sort(mined), np.sort(nearest))

    trained = (
        *folder_pretraining(small_folder, tmp_path / "trained"), *ENCODER,
        "MODEL.PRETRAIN_PATH", weights, "USLT_PRETRAIN.TOPK_NEIGHBORS_PATH",
        tmp_path / "mined" / "topk-train-neighbors.npy",
    )  # fmt: skip
    script(FOLDER_PRETRAIN, *trained)
    state = load(tmp_path / "trained")["model"]
    theirs = timm.create_model("test_resnet").state_dict()
    body = {k for k in theirs if not k.startswith("fc.")}
    assert {k for k in state if k.startswith("backbone.")} == {
        f"backbone.encoder.{k}" for k in body
    }
    assert state["cluster_head.0.weight"].shape == (5, 96)

    capsys.readouterr()
    checkpoint = tmp_path / "trained" / "checkpoint.pth"
    argv = (*folder_selection(small_folder, checkpoint, tmp_path / "picked"), *ENCODER)
    script(FOLDER_SELECT, *argv, "USLT.NUM_SELECTED_SAMPLES", 4)
    picks = printed_alone(capsys.readouterr().out)
    # The same features, and from its heads' clusters the densest image.
    np.testing.assert_allclose(unit_features(tmp_path / "picked"), unit, atol=1e-5)
    head = state["cluster_head.0.weight"].double().numpy()
    clusters = (unit @ (head / np.linalg.norm(head, axis=1, keepdims=True)).T).argmax(axis=1)
    assert len({clusters[pick] for pick in picks}) == min(4, len(set(clusters)))


def test_selectors_compared_on_a_folder(small_folder, weights, tmp_path, script, capsys):
    options = (
        "--cfg", "configs/study/imagenette-lite0.yaml", "--opts", *ENCODER, "DATASET.ROOT_DIR",
        small_folder, "DATASET.IMAGE_SIZE", 32, "MODEL.PRETRAIN_PATH", weights, "RUN_DIR", tmp_path,
        "COMPARE.BUDGETS", "[4, 8]", "USL.SEEDS", "[1, 2]", "USL.KNN_K", 0,
    )  # fmt: skip
    script(COMPARE, *options)
    # A quarter of a mean cluster would be one image: ten at least.
    assert [x.name for x in tmp_path.glob("density_*[0-9].npy")] == ["density_10.npy"]
    assert "k-means centres" in capsys.readouterr().out
    assert {(row["budget"], row["seed"]) for row in rows_of(tmp_path)} == {
        (budget, seed) for budget in "48" for seed in "12"
    }


def test_images_without_labels_cannot_be_compared(small_folder, weights, tmp_path, script):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i, path in enumerate((small_folder / split).rglob("*.png")):
            (tmp_path / split / f"{i}.png").write_bytes(path.read_bytes())
    options = ("DATASET.ROOT_DIR", tmp_path, "MODEL.PRETRAIN_PATH", weights, "SKIP_SAVE", True)
    with pytest.raises(InputError, match="have no labels to compare with; put them into folders"):
        script(COMPARE, "--cfg", "configs/study/imagenette-lite0.yaml", "--opts", *options)


def simclr(root, run, *options):
    return (
        "--cfg", "configs/fashion-mnist_simclr.yaml", "--opts", "DATASET.NAME", "folder",
        "DATASET.ROOT_DIR", root, "DATASET.IMAGE_SIZE", 32, "DATASET.TRANSFORM_NAME", "",
        "MODEL.ARCH", NAME, "RUN_DIR", run, "EPOCHS", 1, "DATALOADER.BATCH_SIZE", 12,
        "EVALUATE_EVERY", 1, "SIMCLR.TOPK_NEIGHBORS_PATH", "", *options,
    )  # fmt: skip


def test_pretraining_a_network_of_timm_and_choosing_by_it(small_folder, tmp_path, script, capsys):
    script(SIMCLR, *simclr(small_folder, tmp_path / "trained"))
    capsys.readouterr()
    saved = torch.load(tmp_path / "trained" / "encoder.pth", weights_only=True)
    assert "backbone.conv1.0.weight" in saved or "backbone.conv1.weight" in saved
    encoder = tmp_path / "trained" / "encoder.pth"
    for output, dim in (("head", 128), ("backbone", 96)):
        run = tmp_path / output
        argv = imagenet_selection(small_folder, encoder, run, "MODEL.FEATURES", output)
        script(IMAGENET, *argv)
        assert len(printed_alone(capsys.readouterr().out)) == 4
        features = np.load(run / "memory_feats_list.npy")
        assert features.shape == (36, dim)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("DATASET.TRANSFORM_NAME", "CLD-cifar10"),
            "DATASET.TRANSFORM_NAME is CLD-cifar10, and tim",
        ),
        (
            ("CLD", True, "GROUP.COUNT", 4),
            "MODEL.ARCH 'timm/test_resnet' is not trained here with CLD; choose ResNet18",
        ),
        (("MODEL.ARCH", "timm/resnet51"), "unknown MODEL.ARCH 'timm/resnet51'; did you mean timm/"),
        (
            ("DATASET.NAME", "digits"),
            "MODEL.ARCH timm/test_resnet sees 32 × 32 pixels, and trains on",
        ),
    ],
)
def test_what_cannot_be_pretrained(small_folder, tmp_path, script, options, message):
    with pytest.raises(InputError, match=message):
        script(SIMCLR, *simclr(small_folder, tmp_path / "run", *options))


def test_a_vision_transformer_is_trained_at_another_side(small_folder, tmp_path, script):
    script(SIMCLR, *simclr(small_folder, tmp_path / "run", "MODEL.ARCH", "timm/test_vit"))
    saved = torch.load(tmp_path / "run" / "encoder.pth", weights_only=True)
    # Four patches of 16 × 16 pixels, and the class token.
    assert saved["backbone.pos_embed"].shape == (1, 5, 64)
