import runpy

import numpy as np
import pytest
import torch
from commands import (
    FOLDER_PRETRAIN,
    MINE,
    PRETRAIN,
    SELECT,
    SIMCLRV2,
    TINY,
    folder_pretraining,
    pretraining,
    selection,
    simclrv2,
)
from helpers import ROOT, make_cifar, make_cld_checkpoint, random_statistics, run_script
from PIL import Image

from usl.encoders.checkpoints import save_encoder
from usl.encoders.registry import new_network
from usl.models.resnet_cifar import PretextEncoder, small_resnet


def pytest_collection_modifyitems(items):
    """Tests are slow where a fixture is that they hang on."""
    for item in items:
        if {"chained", "clean", "simclr_run", "whole_cifar"} & set(item.fixturenames):
            item.add_marker("slow")


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs in this process write no reports, whose pictures take long."""
    for name in ("training.write_training_report", "report.write_selection_report"):
        monkeypatch.setattr(f"usl.stages.{name}", lambda *args, **options: None)
    monkeypatch.setattr("usl.stages.report.feature_map", lambda *args: None)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A small SimCLR encoder with random weights, in SCAN's layout."""
    path = tmp_path_factory.mktemp("encoder") / "encoder.pth"
    torch.manual_seed(0)
    save_encoder(path, new_network("SmallResNet", 2, 10, cld=False), cld=False)
    return path


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    """A folder with made-up CIFAR-10 and CIFAR-100 files and a checkpoint in the CLD layout."""
    root = tmp_path_factory.mktemp("cifar")
    make_cifar(root)
    make_cifar(root, classes=100)
    make_cld_checkpoint(root / "cld.pth")
    return root


@pytest.fixture(scope="session")
def tiny_cifar(tmp_path_factory):
    """Files in CIFAR's format, and a pretext checkpoint of a tiny network."""
    root = make_cifar(tmp_path_factory.mktemp("data"), per_file=16)
    torch.manual_seed(0)
    weights = PretextEncoder(**small_resnet(2, 10)).state_dict()
    torch.save({f"module.{k}": v for k, v in weights.items()}, root / "pretext.pth.tar")
    return root


@pytest.fixture(scope="session")
def chained(tiny_cifar, tmp_path_factory):
    """Neighbours, training and picks by three processes that nothing disturbed."""
    root = tmp_path_factory.mktemp("clean")
    options = (
        "DATASET.ROOT_DIR",
        tiny_cifar,
        "MODEL.PRETRAIN_PATH",
        tiny_cifar / "pretext.pth.tar",
    )
    config = ("--cfg", "configs/cifar10_neighbors.yaml", "--opts", *TINY, *options)
    mined = run_script(MINE, *config, "RUN_DIR", root / "mined", "DATALOADER.BATCH_SIZE", 16)
    assert mined.returncode == 0, mined.stderr
    neighbors = root / "mined" / "topk-train-neighbors.npy"
    trained = run_script(PRETRAIN, *pretraining(tiny_cifar, neighbors, root / "trained"))
    assert trained.returncode == 0, trained.stderr
    checkpoint = root / "trained" / "checkpoint.pth"
    picked = run_script(SELECT, *selection(tiny_cifar, checkpoint, root / "picked"))
    assert picked.returncode == 0, picked.stderr
    return root, mined, trained, picked


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory):
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
    encoder = random_statistics(PretextEncoder(**small_resnet(2, 10)))
    torch.save(encoder.state_dict(), root / "pretext.pth.tar")
    np.save(
        root / "n.npy", (np.arange(36)[:, None] // 9 * 9) + (np.arange(36)[:, None] + range(6)) % 9
    )
    return root


@pytest.fixture(scope="session")
def simclr_folder(small_folder, tmp_path_factory):
    """The same images, a small SimCLRv2 checkpoint and a split with pseudo-labels."""
    root = tmp_path_factory.mktemp("simclr")
    for split in ("train", "val"):
        (root / split).symlink_to(small_folder / split)
    torch.manual_seed(0)
    size = "r14_0.125x_sk0"
    network = random_statistics(new_network("SimCLRv2", 0, 0, cld=False, size=size))
    save_encoder(root / f"{size}.pth", network, cld=False)
    # Two images of each class; one pseudo-label is wrong.
    rows = [f"{index},{'abcd'[index // 9]}/{index % 9}.png" for index in (0, 3, 9, 14, 20, 26, 30)]
    labels = [0, 0, 1, 1, 2, 3, 3]
    lines = [f"{row},{label}" for row, label in zip(rows, labels, strict=True)]
    (root / "split.csv").write_text("\n".join(["Index,ImageID,Pseudolabel", *lines, ""]))
    return root


@pytest.fixture(scope="session")
def simclr_run(simclr_folder, tmp_path_factory):
    """A fine-tuning on them that nothing disturbed."""
    run = tmp_path_factory.mktemp("run")
    argv = [str(word) for word in simclrv2(simclr_folder, run)]
    runpy.run_path(str(ROOT / SIMCLRV2))["main"](argv)
    return run


@pytest.fixture(scope="session")
def folder_run(small_folder, tmp_path_factory):
    """A training on it that nothing disturbed."""
    run = tmp_path_factory.mktemp("run")
    argv = [str(word) for word in folder_pretraining(small_folder, run)]
    argv[1] = str(ROOT / "usl-t_pretraining" / argv[1])
    runpy.run_path(str(ROOT / FOLDER_PRETRAIN))["main"](argv)
    return run
