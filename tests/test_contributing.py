"""The worked examples of CONTRIBUTING.md, entered where it says."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT

pytestmark = pytest.mark.slow
CODE = re.compile(r"```(?:python|yaml)\n(.*?)```", re.DOTALL)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project with all that the examples add."""
    root = tmp_path_factory.mktemp("house")
    for room in ("usl", "configs", "selective_labeling/configs"):
        shutil.copytree(ROOT / room, root / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "selective_labeling/usl-cifar.py", root / "selective_labeling")
    text = (ROOT / "CONTRIBUTING.md").read_text()
    examples = {title: CODE.findall(part) for title, part in sections(text)}

    def append(file, code):
        (root / file).write_text((root / file).read_text() + "\n\n" + code)

    def enter(file, opening, line):
        before = (root / file).read_text()
        assert before.count(opening) == 1, file
        (root / file).write_text(before.replace(opening, opening + line))

    (encoder,) = examples["encoder"]
    append("usl/encoders/registry.py", encoder)
    opener, normalization, settings = examples["data set"]
    append("usl/data/datasets.py", opener)
    opening = "NORMALIZATION: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {\n"
    enter("usl/encoders/preprocess.py", opening, normalization)
    (root / "configs/arrays.yaml").write_text(settings)
    rule, entry = examples["selector"]
    (root / "usl/selectors/drawn.py").write_text(rule)
    append("usl/selectors/registry.py", entry)
    (export,) = examples["export"]
    append("usl/lists/exports.py", export)
    module, line, script, settings = examples["stage"]
    (root / "usl/stages/by_name.py").write_text(module)
    enter("usl/stages/table.py", "from usl.stages import (\n", "    by_name,\n")
    enter("usl/stages/table.py", "STAGES: dict[str, Stage] = {\n", line)
    (root / "selective_labeling/select-by-name.py").write_text(script)
    (root / "selective_labeling/configs/digits_by-name.yaml").write_text(settings)
    return root


def sections(text):
    for part in text.split("\n## How to add a")[1:]:
        title, _, rest = part.partition("\n")
        yield title.removeprefix("n ").strip(), rest


def run(house, *argv):
    finished = subprocess.run(
        [sys.executable, *map(str, argv)], cwd=house / "selective_labeling", text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": str(house)},
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_stage_chooses_with_the_selector(house):
    config = ("--cfg", "configs/digits_by-name.yaml", "--opts", "SELECT.SELECTOR", "drawn")
    out = run(house, "select-by-name.py", *config)
    folder = house / "selective_labeling/saved/digits_by-name"
    picks = np.load(folder / "selected_indices_40_1.npy")
    assert len(set(picks.tolist())) == 40
    assert f"indices: {picks.tolist()}" in out
    assert (folder / "report.html").exists()


def test_the_encoder_sees_the_data_set_and_the_export_names_the_picks(house):
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        folder = house / "data/arrays"
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{split}_images.npy", random.integers(0, 256, (30, 32, 32, 3), np.uint8))
        np.save(folder / f"{split}_labels.npy", random.integers(0, 2, 30))
    (house / "selective_labeling/configs/arrays_usl.yaml").write_text(
        "BASE: ../../configs/arrays.yaml\nRUN_NAME: arrays\n"
        "MODEL: {ARCH: thumbnail}\nEXPORT: [names]\n"
        "USL: {NUM_SELECTED_SAMPLES: 4, KNN_K: 5, SEEDS: [1]}\n"
    )
    run(house, "usl-cifar.py", "--cfg", "configs/arrays_usl.yaml")
    folder = house / "selective_labeling/saved/arrays"
    features = np.load(folder / "memory_feats_list.npy")
    assert features.shape == (30, 48)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    picks = np.load(folder / "selected_indices_4_1.npy").tolist()
    lines = (folder / "exports/names/arrays_seed1.txt").read_text().split()
    assert lines == [str(index) for index in picks]
    assert "48" in run(house, "-m", "usl.encoders", "thumbnail")
