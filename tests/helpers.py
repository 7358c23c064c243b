"""What the tests of several modules share: scripts, small files, small networks, comparisons."""

import base64
import csv
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from usl.data.datasets import ImageDataset
from usl.encoders.preprocess import preprocess_named
from usl.lists.read import Labelled, read_labelled
from usl.models.resnet_cifar import CifarResNet, CldEncoder, small_resnet
from usl.report.selection import write_selection_report
from usl.stages.table import STAGES, read_settings

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
FACTS = TESTS / "facts"
RELEASED = ROOT / "selective_labeling" / "released"
# Names and shapes of the released weights, by file.
STATE_DICTS = json.loads((FACTS / "state_dicts.json").read_text())
CPU = torch.device("cpu")


LIMIT = 600  # seconds, after which a process is stuck
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def run_script(script, *argv, launcher=(sys.executable,)):
    """Run "stage/script.py" as a person does: a new process, from its own folder."""
    path = ROOT / script
    command = [*launcher, path.name, *map(str, argv)]
    return subprocess.run(command, cwd=path.parent, capture_output=True, text=True, timeout=LIMIT)


def torchrun(count, script, *argv):
    """The same in so many processes."""
    return run_script(script, *argv, launcher=(*LAUNCHER, str(count)))


def kill_script(script, *argv, when):
    """Start a script and kill it as soon as ``when()``."""
    path = ROOT / script
    command = [sys.executable, path.name, *map(str, argv)]
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=path.parent, stderr=nowhere, stdout=nowhere)
    deadline = time.monotonic() + 120
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()


def settings(script, *argv):
    """What a script takes from these words, given in its own folder."""
    path = ROOT / script
    words = [str(path.parent / a) if str(a).startswith("configs/") else str(a) for a in argv]
    entry = STAGES[f"{path.parent.name}/{path.name}"]
    return read_settings(replace(entry, cfg=None), words, script=str(path))


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def printed(text):
    """The indices that a script printed, by seed or head."""
    pattern = r"(?:seed|head) (\d+): (\d+) picks\n(?:class counts.*\n)?indices: (\[.*\])"
    found = re.findall(pattern, text)
    picks = {int(seed): json.loads(indices) for seed, _, indices in found}
    assert all(len(picks[int(seed)]) == int(count) for seed, count, _ in found)
    return picks


def printed_alone(text):
    """The same, of a script that prints those of one seed."""
    (found,) = printed(text).values()
    return found


def rows_of(run):
    """The table of a run, results.csv."""
    return csv_rows(run / "results.csv")


def csv_rows(path):
    """The rows of a CSV, each by the names of its columns."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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


def reverse_labels(root):
    """Give the images of CIFAR-10 files the labels of others."""
    for path in (root / "cifar-10-batches-py").glob("*_batch*"):
        content = pickle.loads(path.read_bytes())
        content["labels"] = content["labels"][::-1]
        path.write_bytes(pickle.dumps(content, protocol=2))


def make_cld_checkpoint(path, *, seed=0, **extra):
    """A checkpoint in the layout of the released CLD ones, with random weights."""
    torch.manual_seed(seed)
    weights = {f"module.{k}": v for k, v in CldEncoder().state_dict().items()}
    weights["module.groupDis.0.weight"] = torch.zeros(512, 128)
    torch.save({"model": weights, "epoch": 200, **extra}, path)
    return path


SIDE = 32  # so images are resized to 37 on their shorter side
# File, mode and size (width, height) of images of every kind that people have.
KINDS = {
    "ant/wide.jpg": ("RGB", (80, 50)),
    "ant/tall.JPEG": ("RGB", (41, 90)),
    "ant/grey.png": ("L", (50, 60)),
    "bee/alpha.png": ("RGBA", (37, 37)),
    "bee/palette.png": ("P", (64, 48)),
    "bee/ink.jpg": ("CMYK", (45, 45)),
    "bee/line.bmp": ("1", (60, 40)),
    "cat/grey-alpha.png": ("LA", (39, 38)),
    "cat/tiny.webp": ("RGB", (5, 7)),
    "cat/deep.tif": ("I;16", (40, 40)),
    "cat/long.png": ("RGB", (300, 20)),
}


def picture(mode, size, seed):
    random = np.random.RandomState(seed)
    noise = random.randint(0, 256, (9, 9, 3)).astype(np.uint8)
    smooth = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(smooth.convert("L")).astype(np.uint16))
    if mode == "RGBA":
        smooth.putalpha(smooth.convert("L"))
    return smooth.convert(mode)


def make_folder(root, kinds=KINDS, split="train"):
    for seed, (name, (mode, size)) in enumerate(kinds.items()):
        path = root / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # A palette whose every colour has a transparency of its own, as the web's have.
        options = {"transparency": bytes(range(256))} if mode == "P" else {}
        picture(mode, size, seed).save(path, **options)
    return root


class Evil:
    """What a pickle must not be able to do."""

    def __reduce__(self):
        # Not print itself: Ray puts one of its own in its place.
        return (exec, ("print('executed')",))


def tiny_images(n, *, channels=3, split="train", seed=1):
    random = np.random.RandomState(seed)
    images = random.randint(0, 256, (n, 32, 32, channels)).astype(np.uint8)
    return ImageDataset("tiny", split, images, random.randint(3, size=n), ("a", "b", "c"))


def labelled(data, *indices):
    chosen = torch.tensor(indices)
    return Labelled("list", chosen, torch.from_numpy(data.labels)[chosen])


def pets(labels=True):
    answers = np.array([0, 1, 2, 1, 0, 2, 1, 0, 2, 0])
    images = np.zeros((10, 8, 8, 3), np.uint8)
    return ImageDataset("pets", "train", images, answers if labels else None, ("cat", "dog", "2nd"))


def read_list(tmp_path, content, *, name="list.csv", images=None):
    """What a file of this content says of the pets."""
    path = tmp_path / name
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        np.save(path, content)
    return read_labelled(path, images or pets())


def preprocess(data, name="digits", side=SIDE):
    """Preprocessing of a released network for a data set."""
    return preprocess_named(name, data, side=side)


def small_backbone(seed=0):
    torch.manual_seed(seed)
    return CifarResNet(**small_resnet(2, 10))


def random_statistics(network):
    """Batch norm that has seen something, so that a network in eval mode is no identity."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network


def shapes(network):
    return {k: list(v.shape) for k, v in network.state_dict().items()}


class Watched:
    """Views that note what was asked for and what they gave, perhaps in another precision."""

    def __init__(self, views, dtype=torch.float32):
        self.views, self.dtype, self.images, self.device = views, dtype, views.images, CPU
        self.calls, self.given = [], []

    def __len__(self):
        return len(self.views)

    def prepare(self, augment, rows, key):
        self.views.prepare(augment, rows, key)

    def __call__(self, augment, rows, key):
        self.calls.append((type(augment), rows.tolist(), key.image.tolist(), key.epoch, key.view))
        self.given.append(self.views(augment, rows, key).to(self.dtype))
        return self.given[-1]


def disturbed(make, *, die_at=None, spoil_at=None):
    """The steps of a training, interrupted before one, or with a loss that is NaN in one."""

    def make_disturbed(network):
        step = make(network)

        def disturbed_step(images, epoch, number):
            if number == die_at:
                raise KeyboardInterrupt
            loss, numbers = step(images, epoch, number)
            return loss * (math.nan if number == spoil_at else 1), numbers

        return disturbed_step

    return make_disturbed


WORKER = """
import json
import torch
from {module} import {name}
from usl import distributed

torch.manual_seed(0)
with distributed.processes(torch.device("cpu")):
    result = {name}(*{arguments!r})
    if distributed.is_main():
        print("RESULT " + json.dumps(result))
"""


def in_processes(path, count, function, *arguments):
    """What the first of so many processes, started by ``torchrun``, gets from a function."""
    path.write_text(
        WORKER.format(module=function.__module__, name=function.__name__, arguments=arguments)
    )
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [*LAUNCHER, str(count), str(path)], capture_output=True, text=True, timeout=LIMIT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def features(kind, n, d, seed=0):
    random = np.random.RandomState(seed)
    if kind == "sphere":
        x = random.randn(6, d)[random.randint(6, size=n)] + 0.5 * random.randn(n, d)
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    if kind == "grid":  # many exact ties
        return random.randint(0, 3, size=(n, d)).astype(np.float32)
    if kind == "duplicates":
        return random.randn(n // 5, d).astype(np.float32)[random.randint(n // 5, size=n)]
    if kind == "constant":
        return np.full((n, d), 0.3, dtype=np.float32)
    if kind == "far":  # far from the origin, where plain float32 products lose everything
        return random.randn(n, d) + 1e5
    if kind == "outlier":
        x = random.randn(n, d)
        x[n // 2] *= 1e6
        return x
    if kind == "tiny":
        return random.randn(n, d) * 1e-20
    raise ValueError(kind)


def unit(n, d, seed):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(x).requires_grad_()


def tensor(images):
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255


VARIED = 420


def varied_pictures(height, width):
    """Noise, low contrast, slopes, flat, grey and two-level images, (N, H, W, 3), uint8."""
    r = np.random.RandomState(0)
    noise = r.randint(0, 256, (VARIED, height, width, 3))
    slope = np.linspace(0, 255, width)[None, None, :, None] * r.rand(VARIED, 1, 1, 3)
    kinds = [
        noise,
        noise // 4 + 90,
        slope + noise // 20,
        slope,
        noise[:, :1, :1],
        noise[..., :1],
        np.where(noise < 128, 10, 200),
    ]
    kinds = [np.broadcast_to(kind, noise.shape)[i::7] for i, kind in enumerate(kinds)]
    return np.stack(kinds, axis=1).reshape(noise.shape).clip(0, 255).astype(np.uint8)


def write_report(path, *, dataset, results, **options):
    write_selection_report(
        path, results, title="Picks", facts={"Data set": dataset.name}, command="python x.py",
        timings={"features": 1.25}, dataset=dataset, **options,
    )  # fmt: skip
    return path.read_text()


def decode(uri):
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


def close(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-11, atol=1e-13)


def load(folder):
    return torch.load(folder / "checkpoint.pth", weights_only=True)


def equal_training(a, b):
    """Whether two checkpoints hold the same weights and averages, to the bit."""
    for key in ("model", "criterion_local", "criterion_global"):
        assert list(a[key]) == list(b[key])
        for name, value in a[key].items():
            assert torch.equal(value, b[key][name]), name


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
