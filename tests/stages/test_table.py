"""The YAML files and the commands: they fit the scripts, and the original's experiments stay."""

import ast
import json
import os
import re
from pathlib import Path

import pytest
import yaml
from commands import (
    CIFAR,
    COMPARE,
    FINETUNE,
    FIXMATCH,
    FOLDER_PRETRAIN,
    FOLDER_SELECT,
    MINE,
    PRETRAIN,
    SELECT,
)
from helpers import FACTS, ROOT, settings, value

from usl import InputError
from usl.selectors.registry import SELECTORS
from usl.stages.table import SETTINGS, STAGES, read_settings

# The values of the original's YAML files, by stage and file.
EXPERIMENTS = json.loads((FACTS / "experiments.json").read_text())
# Where the original's stages disagree with each other, ours do not.
CHAINED = {
    "../usl-t_pretraining/saved/imagenet100_feat_v5/checkpoint.pth": "imagenet100_v5",
    "../usl-t_pretraining/saved/imagenet_feat_v3/checkpoint.pth": "imagenet_v3",
    "pretrained/pretext_imagenet/model.pth.tar": "pretrained_kNN_imagenet",
    "pretrained/pretext_imagenet/topk-train-neighbors.npy": "pretrained_kNN_imagenet",
}


def script_of(path):
    """The script that a YAML names in its header."""
    named = re.search(
        rf"python ([\w-]+\.py) --cfg configs/{re.escape(path.name)}", path.read_text()
    )
    return named and named[1]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_originals_experiments_stay(name):
    path = ROOT / name
    stage = path.parents[1]
    cfg = settings(stage / script_of(path), "--cfg", path)
    for key, expected in EXPERIMENTS[name].items():
        found = value(cfg, key)
        if key.endswith(("_PATH", "ROOT_DIR")):
            if expected in CHAINED:
                assert f"/{CHAINED[expected]}/" in found, key
            else:
                assert found == os.path.normpath(stage / expected), key
        elif not key.startswith(("RECOMPUTE_", "DATALOADER.WORKERS")):
            assert found == expected, key


def test_every_config_parses_with_its_script():
    paths = list(ROOT.glob("*[-_]*/configs/*.yaml"))
    assert len(paths) > 40
    for path in paths:
        script = script_of(path)
        assert script and (path.parents[1] / script).exists(), path
        settings(path.parents[1] / script, "--cfg", path)


def test_the_study_names_what_is_there():
    """Its pools parse with the script, and so do the trainings that they name."""
    stage = ROOT / "selective_labeling"
    studies = [settings(COMPARE, "--cfg", f"{name}.yaml") for name in ("study", "study_smoke")]
    named = {pool for cfg in studies for pool in cfg.COMPARE.POOLS}
    there = {str(path.relative_to(stage / "configs")) for path in stage.glob("configs/study/*")}
    assert named == there
    for name in [*named, "demo.yaml", "cifar10_published_compare.yaml"]:
        train = settings(COMPARE, "--cfg", name).COMPARE.TRAIN
        for script, config in ((FINETUNE, train.FINETUNE), (FIXMATCH, train.FIXMATCH)):
            if config:
                settings(script, "--cfg", config)
    # All that choose are compared, and what is trained on is among them.
    study = studies[0].COMPARE
    assert set(study.SELECTORS) == set(SELECTORS) and set(study.TRAIN.SELECTORS) < set(SELECTORS)
    assert set(study.TRAIN.SEEDS) < set(studies[0].USL.SEEDS)


def test_the_demo_chains_without_editing():
    """Each command of the Makefile's demo reads what one before it wrote."""
    trained = settings(PRETRAIN, "--cfg", "demo_usl-t_pretrain.yaml")
    chosen = settings(SELECT, "--cfg", "demo_usl-t.yaml")
    compared = settings(COMPARE, "--cfg", "demo.yaml")
    assert str(Path(trained.RUN_DIR) / "checkpoint.pth") == chosen.MODEL.PRETRAIN_PATH
    (listed,) = compared.COMPARE.LISTS
    assert listed == str(Path(chosen.RUN_DIR) / "selected_indices_{budget}_{seed}.npy")
    assert compared.COMPARE.BUDGETS == [chosen.USLT.NUM_SELECTED_SAMPLES]
    demo = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    heads = re.search(r"for head in ([\d ]+);", demo)[1].split()
    assert [int(head) for head in heads] == compared.USL.SEEDS == compared.COMPARE.TRAIN.SEEDS
    for folder, script, config in re.findall(r"cd (\S+) && .*?python (\S+) --cfg (\S+)", demo):
        assert (ROOT / folder / script).exists() and (ROOT / folder / config).exists()


def test_dataset_configs_hold_three_keys():
    for path in Path(ROOT / "configs").glob("*.yaml"):
        assert list(yaml.safe_load(path.read_text())) == ["DATASET"]


def test_readme_commands_name_scripts_and_configs_that_exist():
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"python ([\w-]+\.py) --cfg (configs/[\w.-]+)", text)
    assert len(commands) >= 5
    for name, config in commands:
        folders = {path.parent for path in ROOT.glob(f"*/{name}")}
        assert any((folder / config).exists() for folder in folders), (name, config)


@pytest.mark.parametrize("stem", ["digits", "fashion-mnist", "fashion-mnist-folder"])
def test_the_readmes_configs_chain_without_editing(stem):
    files = stem.endswith("folder")
    mined = settings(MINE, "--cfg", f"{stem}_neighbors.yaml")
    name = FOLDER_PRETRAIN if files else PRETRAIN
    trained = settings(name, "--cfg", f"{stem}_usl-t_pretrain.yaml")
    chosen = settings(FOLDER_SELECT if files else SELECT, "--cfg", f"{stem}_usl-t.yaml")

    def same(read, written):
        assert Path(read).resolve() == Path(written).resolve()

    uslt = trained.USLT_PRETRAIN
    same(uslt.TOPK_NEIGHBORS_PATH, Path(mined.RUN_DIR) / "topk-train-neighbors.npy")
    same(chosen.MODEL.PRETRAIN_PATH, Path(trained.RUN_DIR) / "checkpoint.pth")
    same(trained.MODEL.PRETRAIN_PATH, mined.MODEL.PRETRAIN_PATH)
    for key in ("NAME", "ROOT_DIR", "TRANSFORM_NAME"):
        assert mined.DATASET[key] == trained.DATASET[key] == chosen.DATASET[key]
    assert {c.MODEL.ARCH for c in (mined, trained, chosen)} == {"SmallResNet"}
    assert chosen.USLT.NUM_CLUSTERS in (0, uslt.NUM_SELECTED_SAMPLES)


# The original's scripts and the config that each reads without --cfg.
ORIGINAL = {
    "selective_labeling/usl-cifar.py": "cifar10_usl.yaml",
    "selective_labeling/random-cifar.py": "cifar10_random.yaml",
    "selective_labeling/usl-imagenet.py": "ImageNet_usl_moco_0.2.yaml",
    "selective_labeling/usl-t-cifar.py": "cifar10_usl-t.yaml",
    "selective_labeling/usl-t-imagenet.py": "ImageNet_usl-t_0.2.yaml",
    "usl-t_pretraining/usl-t-cifar-pretrain.py": "cifar10_usl-t_pretrain.yaml",
    "usl-t_pretraining/usl-t-imagenet-pretrain.py": "ImageNet_usl-t_pretrain.yaml",
    "semisup-simclrv2-cld/fine_tune.py": "cifar10_usl_finetune.yaml",
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_without_a_config_a_script_reads_the_originals(name, tmp_path, monkeypatch):
    entry = STAGES[name]
    assert entry.cfg == f"configs/{ORIGINAL[name]}"
    monkeypatch.chdir(tmp_path)
    alone = read_settings(entry, [], script=str(ROOT / name))
    given = settings(name, "--cfg", f"configs/{ORIGINAL[name]}")
    assert alone == given and alone.DATASET.NAME
    # Options still change it, and another config replaces it whole.
    argv = ["--opts", "RUN_NAME", "other"]
    changed = read_settings(entry, argv, script=str(ROOT / name))
    assert changed.RUN_NAME == "other" and changed.DATASET == given.DATASET


def test_a_script_alone_reads_its_config(cifar, tmp_path, script):
    # The data set is that of the original's config; without one there would be none to open.
    with pytest.raises(InputError, match="USL.KNN_K is 400; choose 2 to 200, the number of images"):
        script(CIFAR, "--opts", "DATASET.ROOT_DIR", cifar, "RUN_DIR", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_option_in_an_error_of_the_library_is_called_by_its_setting():
    settings_of = {key for stage in STAGES.values() for key in leaves(stage.defaults())}
    assert {key for keys in SETTINGS.values() for key in keys} <= settings_of
    # Options that no setting reaches, for those who call the library themselves.
    free = {"magnitude", "padding", "fill", "radius", "seed"}
    named = set()
    for path in (ROOT / "usl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "InputError":
                named |= set(re.findall(r"`(\w+)`", ast.unparse(node)))
    assert named - {"name"} == set(SETTINGS) - UNUSED | free


# Named by a variable, as in f"`{name}` is …", or in a constant.
UNUSED = {"weight", "alpha", "horizon_dist", "jitter", "grey", "blur", "recompute"}


def leaves(tree, prefix=""):
    for key, inside in tree.items():
        if hasattr(inside, "items"):
            yield from leaves(inside, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def test_an_old_yaml_that_sets_a_retired_key_is_read_and_told_so(tmp_path, caplog):
    (tmp_path / "old.yaml").write_text("AUGMENT:\n  BACKEND: pil\n  FLIP: 0.25\n")
    cfg = settings(PRETRAIN, "--cfg", tmp_path / "old.yaml", "--opts", "AUGMENT.BACKEND", "auto")
    assert cfg.AUGMENT.FLIP == 0.25 and "BACKEND" not in cfg.AUGMENT
    said = caplog.messages
    assert [text.partition(": ")[0] for text in said] == [str(tmp_path / "old.yaml"), "--opts"]
    assert all("AUGMENT.BACKEND is ignored: random views are always made" in text for text in said)
    # Also where a script has no random views.
    (tmp_path / "old.yaml").write_text("AUGMENT:\n  BACKEND: pil\n")
    settings(CIFAR, "--cfg", tmp_path / "old.yaml")
