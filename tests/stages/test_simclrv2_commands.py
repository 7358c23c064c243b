"""The two commands of the original README, as printed but for the paths and --max-steps."""

import re
import shlex
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from commands import FOLDER_PRETRAIN, FOLDER_SELECT, SIMCLRV2, folder_pretraining, folder_selection
from helpers import LIMIT, ROOT, rows_of, run_script, torchrun
from PIL import Image

from usl.checkpoints import read_checkpoint
from usl.models.simclrv2 import SimclrEncoder, size_in

IMAGENET100 = (
    '--lr 0.16 --seed 0 --name-to-save "{name}" --trainindex_x "{split}" -j 16 --batch-size 256 '
    "--eval-freq 48 --epochs 48 --warmup-epochs 0 --weight-decay 0.0001 --dist-url "
    "'tcp://localhost:10005' --multiprocessing-distributed --world-size 1 --rank 0 --pretrain "
    "{weights} --roll-data 20 --amp-opt-level O1 --roll-data 40 --num-classes 100 "
    "--freeze-backbone {images} --max-steps 2"
)
IMAGENET = (
    '--lr 0.16 --seed 0 --name-to-save "{name}" --trainindex_x "{split}" -j 16 --batch-size 512 '
    "--eval-freq 6 --epochs 12 --warmup-epochs 0 --weight-decay 0 --dist-url "
    "'tcp://localhost:10001' --multiprocessing-distributed --world-size 1 --rank 0 --pretrain "
    "{weights} --multi-epochs-data-loader --amp-opt-level O1 --no-lr-decay {images} --max-steps 2"
)


@pytest.fixture(scope="module")
def photographs(small_folder, tmp_path_factory):
    """40 JPEGs to train and 40 to test on, and the split that USL-T makes of the first."""
    root = tmp_path_factory.mktemp("photographs")
    random = np.random.RandomState(0)
    for split in ("train", "val"):
        for number in range(40):
            colour = np.eye(3)[number // 10 % 3] * 90 + 60
            noise = random.randint(-50, 51, (*random.randint(60, 120, 2), 3))
            path = root / split / f"n{number // 10:02}" / f"{split}_{number}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8)).save(path)
    (root / "pretext.pth.tar").write_bytes((small_folder / "pretext.pth.tar").read_bytes())
    np.save(root / "n.npy", (np.arange(40)[:, None] + range(6)) % 40)
    run = tmp_path_factory.mktemp("uslt")
    trained = run_script(FOLDER_PRETRAIN, *folder_pretraining(root, run / "heads"), "EPOCHS", 1)
    assert trained.returncode == 0, trained.stderr
    words = folder_selection(root, run / "heads" / "checkpoint.pth", run / "picks")
    more = ("USLT.NUM_SELECTED_SAMPLES", 0, "USLT.NUM_PSEUDO_LABELS_PER_CLUSTER", 20)
    picked = run_script(FOLDER_SELECT, *words, *more)
    assert picked.returncode == 0, picked.stderr
    split = run / "picks" / "train_12.5p_gen_mine_index.csv"
    torch.manual_seed(0)
    encoder = SimclrEncoder(size_in("r50_1x_sk0"))
    content = {"resnet": encoder.resnet.state_dict(), "head": encoder.head.state_dict()}
    torch.save(content, run / "r50_1x_sk0.pth")
    return {"images": root, "split": split, "weights": run / "r50_1x_sk0.pth"}


def check(run, stdout, photographs, shape):
    """What must come out: accuracy, and a checkpoint in the original's layout."""
    name = run.name
    assert re.fullmatch(r"accuracy: \d+\.\d\d", stdout.splitlines()[-1])
    (row,) = rows_of(run)
    assert row["budget"] == str(len(pd.read_csv(photographs["split"])))
    content = read_checkpoint(run / "seed0" / f"checkpoint_{name}.pth.tar")
    assert content["step"] == 2 and content["args"].name_to_save == name
    assert content["state_dict"]["module.linear.weight"].shape == shape


# Each once with the network of its size, and once with a small one.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words", "classes", "processes", "small"),
    [
        ("test_usl-t_0.3p_imagenet100", IMAGENET100, 100, 1, False),
        ("test_usl-t_0.3p_imagenet100_2", IMAGENET100, 100, 2, True),
        ("test_usl-t_0.2p_imagenet", IMAGENET, 4, 2, False),
        ("test_usl-t_0.2p_imagenet_1", IMAGENET, 4, 1, True),
    ],
)
def test_the_command(photographs, simclr_folder, tmp_path, name, words, classes, processes, small):
    given = photographs | ({"weights": simclr_folder / "r14_0.125x_sk0.pth"} if small else {})
    argv = [*shlex.split(words.format(name=name, **given)), "--opts", "SAVE_DIR", tmp_path]
    done = run_script(SIMCLRV2, *argv) if processes == 1 else torchrun(2, SIMCLRV2, *argv)
    assert done.returncode == 0, done.stderr[-2000:]
    check(tmp_path / name, done.stdout, photographs, (classes, 256 if small else 2048))


def free_port():
    with socket.socket() as place:
        place.bind(("localhost", 0))
        return place.getsockname()[1]


@pytest.mark.slow
def test_two_machines_by_the_flags_of_the_original(simclr_folder, tmp_path):
    # Each process stands for a machine of its own.
    words = (
        "--lr", 0.02, "--seed", 0, "--trainindex_x", simclr_folder / "split.csv", "--batch-size", 6,
        "--epochs", 2, "--pretrain", simclr_folder / "r14_0.125x_sk0.pth", "--world-size", 2,
        "--dist-url", f"tcp://localhost:{free_port()}", "--multiprocessing-distributed",
        simclr_folder,
        "--roll-data", 2, "--opts", "DATASET.NAME", "folder", "DATASET.IMAGE_SIZE", 32,
        "DEVICE", "cpu",
    )  # fmt: skip
    commands = [
        [sys.executable, "fine_tune.py", "--rank", rank, *words, "RUN_DIR", tmp_path / "run"]
        for rank in (1, 0)
    ]
    both = [
        subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT / "semisup-simclrv2",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command in commands
    ]
    try:
        second, first = (process.communicate(timeout=LIMIT) for process in both)
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], first[1][-2000:]
    # The first machine's only process speaks.
    assert "accuracy: " in first[0] and second[0] == ""
    assert len(rows_of(tmp_path / "run")) == 1
