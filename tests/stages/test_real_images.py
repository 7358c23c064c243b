"""What only real images can show; skipped where data/ has none."""

import json

import numpy as np
import pandas as pd
import pytest
from commands import RANDOM
from helpers import RELEASED, ROOT, printed

from usl.data.datasets import open_dataset

CIFAR10 = ROOT / "data" / "cifar-10-batches-py"
pytestmark = [
    pytest.mark.usefixtures("no_pictures"),
    pytest.mark.skipif(not CIFAR10.is_dir(), reason="real CIFAR-10 is not in data/"),
]
COUNTS = json.loads((RELEASED / "class_counts.json").read_text())


@pytest.mark.parametrize("name", sorted(name for name in COUNTS if name.startswith("cifar10_")))
def test_published_lists_have_their_published_class_counts(name):
    labels = open_dataset("cifar10", CIFAR10.parent).labels
    picks = pd.read_csv(RELEASED / f"{name}.csv")["Index"]
    assert np.bincount(labels[picks], minlength=10).tolist() == COUNTS[name]


def test_the_random_script_gives_the_published_lists_and_counts(tmp_path, script, capsys):
    script(
        RANDOM, "--cfg", "configs/cifar10_random.yaml", "--opts", "DATASET.ROOT_DIR",
        CIFAR10.parent, "RUN_DIR", tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    for seed in (1, 2, 5):
        name = f"cifar10_random_seed{seed}"
        assert printed(out)[seed] == pd.read_csv(RELEASED / f"{name}.csv")["Index"].tolist()
        assert f"class counts: {COUNTS[name]}, " in out
