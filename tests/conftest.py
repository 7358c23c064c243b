import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
STAGE = ROOT / "selective_labeling"


@pytest.fixture
def script(monkeypatch):
    """Call a script's main(argv) in this process, from its own folder."""

    def call(name, *argv):
        monkeypatch.chdir(STAGE)
        runpy.run_path(str(STAGE / name))["main"]([str(a) for a in argv])

    return call


def run_script(name, *argv, **options):
    """Run a script as a person does: a new process, from its own folder."""
    command = [sys.executable, name, *map(str, argv)]
    return subprocess.run(command, cwd=STAGE, capture_output=True, text=True, **options)


def make_cifar(root, *, classes=10, per_file=40, seed=0):
    """Files in CIFAR's own format, with made-up images: blobs of colour, one kind a class."""
    random = np.random.RandomState(seed)
    tens = classes == 10
    folder = root / ("cifar-10-batches-py" if tens else "cifar-100-python")
    folder.mkdir(parents=True)
    colours = random.randint(0, 256, size=(classes, 3, 4, 4))
    train = [f"data_batch_{i}" for i in range(1, 6)] if tens else ["train"]
    key = "labels" if tens else "fine_labels"
    for file in [*train, "test_batch" if tens else "test"]:
        labels = random.randint(classes, size=per_file if tens or file == "test" else 5 * per_file)
        images = colours[labels].repeat(8, axis=2).repeat(8, axis=3)
        images = images + random.randint(-60, 60, size=images.shape)
        data = images.clip(0, 255).astype(np.uint8).reshape(len(labels), 3072)
        (folder / file).write_bytes(pickle.dumps({"data": data, key: labels.tolist()}, protocol=2))
    meta, names = ("batches.meta", "label_names") if tens else ("meta", "fine_label_names")
    content = {names: [f"class-{i}" for i in range(classes)]}
    (folder / meta).write_bytes(pickle.dumps(content, protocol=2))
    return root


def make_cld_checkpoint(path, *, seed=0, **extra):
    """A checkpoint in the layout of the released CLD ones, with random weights."""
    from usl.models.resnet_cifar import CldEncoder

    torch.manual_seed(seed)
    weights = {f"module.{k}": v for k, v in CldEncoder().state_dict().items()}
    weights["module.groupDis.0.weight"] = torch.zeros(512, 128)
    torch.save({"model": weights, "epoch": 200, **extra}, path)
    return path


def same(a, b, where=""):
    """Deep equality of what checkpoints hold, apart from how fast it went."""
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            if key != "images_per_second":
                same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def in_processes(path, code, count):
    """What a worker prints as RESULT and JSON, run by ``torchrun`` in so many processes."""
    path.write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run([*launcher, str(count), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))
