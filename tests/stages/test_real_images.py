"""What only real images can show; skipped where data/ has none."""

import json

import pandas as pd
import pytest
from commands import RANDOM
from helpers import RELEASED, ROOT, printed

CIFAR10 = ROOT / "data" / "cifar-10-batches-py"


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="real CIFAR-10 is not in data/")
def test_the_random_script_gives_the_published_lists_and_class_counts(tmp_path, script, capsys):
    script(
        RANDOM, "--cfg", "configs/cifar10_random.yaml", "--opts", "DATASET.ROOT_DIR",
        CIFAR10.parent, "RUN_DIR", tmp_path,
    )  # fmt: skip
    out = capsys.readouterr().out
    counts = json.loads((RELEASED / "class_counts.json").read_text())
    for seed in (1, 2, 5):
        name = f"cifar10_random_seed{seed}"
        assert printed(out)[seed] == pd.read_csv(RELEASED / f"{name}.csv")["Index"].tolist()
        assert f"class counts: {counts[name]}, " in out
