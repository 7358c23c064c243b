import json
import os
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, STAGE

from usl import InputError
from usl.config import STAGES, as_dict, dump, find_input, parse, random_defaults, usl_defaults


def settings(*argv, defaults=usl_defaults, stage=STAGE):
    return parse(defaults(), list(argv), script=str(stage / "usl-cifar.py"))


# Every key of the original's USL and random stages, with its default.
ORIGINAL = {
    "RUN_NAME": "", "SAVE_DIR_EXIST_OK": True, "RUN_DIR": "", "SKIP_SAVE": False,
    "OPTS_IN_RUN_NAME": False, "RECOMPUTE_ALL": True, "RECOMPUTE_NUM_DEP": True,
    "SAVE_DIR": "saved",
    "DATASET.NAME": "", "DATASET.ROOT_DIR": "../data", "DATASET.TRANSFORM_NAME": "",
    "DATALOADER.BATCH_SIZE": 128, "DATALOADER.WORKERS": 2,
    "MODEL.ARCH": "ResNet18", "MODEL.PRETRAIN_PATH": "", "MODEL.BACKBONE_DIM": 512,
}  # fmt: skip
USL = {
    "USL.NUM_SELECTED_SAMPLES": 40, "USL.KNN_K": 400, "USL.K_MEANS_NITERS": 200,
    "USL.SEEDS": [1, 2, 3, 4, 5], "USL.REG.NITERS": 10, "USL.REG.W": 0.5, "USL.REG.MOMENTUM": 0.9,
    "USL.REG.HORIZON_DIST": 4.0, "USL.REG.ALPHA": 0.5, "USL.REG.HORIZON_NUM": 128,
    "USL.REG.EXCLUDE_SAME_CLUSTER": False,
}  # fmt: skip
RANDOM = {"RANDOM.SEEDS": [1, 2, 3, 4, 5], "RANDOM.NUM_SELECTED_SAMPLES": 40}


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [(usl_defaults, ORIGINAL | USL), (random_defaults, ORIGINAL | RANDOM)],
)
def test_the_originals_keys_and_defaults_stay(defaults, expected):
    cfg = defaults()
    assert {key: value(cfg, key) for key in expected} == expected


# What the original's YAML files say of the experiments, by file.
# The values of the original's YAML files, by stage and file.
EXPERIMENTS = json.loads((ROOT / "tests" / "experiments.json").read_text())
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
    cfg = settings("--cfg", str(path), defaults=STAGES[script_of(path)], stage=stage)
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
        settings("--cfg", str(path), defaults=STAGES[script], stage=path.parents[1])


def test_a_yaml_written_for_the_original_works_unchanged(tmp_path):
    (tmp_path / "old.yaml").write_text(
        "RUN_NAME: 'cifar10_usl'\nSKIP_SAVE: False\nRECOMPUTE_ALL: True\nDATASET:\n"
        "  NAME: cifar10\n  TRANSFORM_NAME: CLD-cifar10\nMODEL:\n  ARCH: ResNet18\n"
        "  PRETRAIN_PATH: 'pretrained/x.pth'\nUSL:\n  REG:\n    HORIZON_DIST: 1\n"
    )
    cfg = settings("--cfg", str(tmp_path / "old.yaml"))
    assert cfg.USL.REG.HORIZON_DIST == 1.0 and type(cfg.USL.REG.HORIZON_DIST) is float
    assert str(STAGE / "pretrained/x.pth") == cfg.MODEL.PRETRAIN_PATH


def test_a_seed_that_nobody_chose_is_the_default(tmp_path):
    (tmp_path / "old.yaml").write_text("SEED: null\n")
    defaults = STAGES["usl-t-cifar-pretrain.py"]
    assert settings("--cfg", str(tmp_path / "old.yaml"), defaults=defaults).SEED == 42


def test_order_is_defaults_base_file_options(tmp_path):
    (tmp_path / "base.yaml").write_text("USL: {KNN_K: 5, NUM_SELECTED_SAMPLES: 6, SEEDS: [7]}")
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("BASE: ../base.yaml\nUSL: {KNN_K: 8, SEEDS: [9]}")
    cfg = settings("--cfg", str(child), "--opts", "USL.SEEDS", "[3, 4]")
    assert (cfg.USL.NUM_SELECTED_SAMPLES, cfg.USL.KNN_K, cfg.USL.SEEDS) == (6, 8, [3, 4])
    assert cfg.USL.K_MEANS_NITERS == 200 and cfg.is_frozen()


def test_trees_are_fresh():
    settings("--opts", "USL.KNN_K", "3")
    assert settings().USL.KNN_K == 400


def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits_usl.yaml", "selective_labeling/configs/digits_usl.yaml"):
        assert settings("--cfg", name).RUN_NAME == "digits_usl"
    (tmp_path / "digits_usl.yaml").write_text("RUN_NAME: mine")
    assert settings("--cfg", "digits_usl.yaml").RUN_NAME == "mine"


def test_paths_start_where_they_were_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("SAVE_DIR: out\nRUN_NAME: r")
    assert str(STAGE / "out" / "r") == settings("--cfg", "a.yaml").RUN_DIR
    cfg = settings("--cfg", "a.yaml", "--opts", "RUN_DIR", "here", "DATASET.ROOT_DIR", "../d")
    assert str(tmp_path / "here") == cfg.RUN_DIR
    assert str(tmp_path.parent / "d") == cfg.DATASET.ROOT_DIR


def test_options_in_the_run_name():
    cfg = settings("--opts", "OPTS_IN_RUN_NAME", "True", "RUN_NAME", "r", "USL.KNN_K", "9")
    assert cfg.RUN_NAME == "r_OPTS_IN_RUN_NAME_True_RUN_NAME_r_USL.KNN_K_9"


def test_a_dumped_config_stands_alone(tmp_path):
    cfg = settings("--cfg", str(STAGE / "configs/cifar100_usl.yaml"))
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert as_dict(settings("--cfg", str(tmp_path / "config.yaml"))) == as_dict(cfg)


@pytest.mark.parametrize("text", ["010", "2024_11_05", "1:30", "yes", "null", "a #1", "a: b"])
def test_texts_of_the_command_line_are_taken_as_they_stand(text):
    assert text == settings("--opts", "RUN_NAME", text).RUN_NAME


def test_options_add_up():
    cfg = settings("--opts", "USL.KNN_K", "3", "--opts", "USL.SEEDS", "[]")
    assert (cfg.USL.KNN_K, cfg.USL.SEEDS) == (3, [])


def test_numbers_that_yaml_takes_for_texts():
    assert settings("--opts", "USL.REG.W", "1e-4").USL.REG.W == 1e-4


def test_inputs_are_found_where_the_originals_commands_leave_them(tmp_path):
    given = tmp_path / "selective_labeling" / "pretrained" / "kNN" / "model.pth"
    with pytest.raises(InputError) as error:
        find_input(str(given), "checkpoint")
    for place in ("usl-t_pretraining/pretrained/kNN/model.pth", "semisup-simclrv2/pretrained/kNN"):
        assert str(tmp_path / place) in str(error.value)
    root = tmp_path / "kNN"
    root.mkdir()
    (root / "model.pth").touch()
    assert find_input(str(given), "checkpoint") == root / "model.pth"
    other = tmp_path / "usl-t_pretraining" / "pretrained" / "kNN"
    other.mkdir(parents=True)
    (other / "model.pth").touch()
    assert find_input(str(given), "checkpoint") == other / "model.pth"


BAD_FILES = {
    "USL: {KNN: 3}": "unknown key USL.KNN; did you mean USL.KNN_K?",
    "KNN_K: 3": "unknown key KNN_K; did you mean USL.KNN_K?",
    "NONSENSE_XYZ: 3": "unknown key NONSENSE_XYZ; known: BASE, RUN_NAME",
    "RANDOM: {SEEDS: [1]}": "RANDOM is a setting of another stage (random-cifar.py); remove it",
    "FEATURES: {PATH: x}": "FEATURES is a setting of another stage (usl-features.py, mine",
    "USL: {KNN_K: many}": "USL.KNN_K is 'many'; give a whole number",
    "USL: {KNN_K: 2.5}": "USL.KNN_K is 2.5; give a whole number",
    "USL: {KNN_K: true}": "USL.KNN_K is True; give a whole number",
    "USL: {SEEDS: 3}": "USL.SEEDS is 3; give a list",
    "USL: {SEEDS: [1, x]}": "USL.SEEDS[1] is 'x'; give a whole number",
    "USL: {REG: {W: heavy}}": "USL.REG.W is 'heavy'; give a number",
    "USL: 3": "USL is a section; give it keys",
    "SKIP_SAVE: 1": "SKIP_SAVE is 1; give True or False",
    "RUN_NAME: [a]": "RUN_NAME is ['a']; give a text, in quotes",
    "RUN_NAME: 010": "RUN_NAME is 8; give a text, in quotes",
    "RUN_NAME: 2024-13-45": "is not YAML",
    "a: [": "line 1 is not YAML",
    "- a": "holds no KEY: VALUE pairs",
    "BASE: nowhere.yaml": "BASE nowhere.yaml is not there",
    "BASE: bad.yaml": "leads back to itself",
    "BASE: 3": "BASE is 3; give the path",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_files(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        settings("--cfg", str(path))
    assert BAD_FILES[text] in str(error.value) and "bad.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--cfg", "nowhere.yaml"], "there is no config nowhere.yaml; tried"),
        (["--cfg"], "expected one argument; see --help"),
        (["--opts", "USL.KNN_K"], "give pairs of KEY VALUE"),
        (["--opts", "USL.KNN_J", "3"], "--opts: unknown key USL.KNN_J; did you mean USL.KNN_K?"),
        (["--opts", "USL.KNN_K.X", "3"], "USL.KNN_K is {'X': 3}"),
        (["--opts", "BASE", "x.yaml"], "BASE belongs in a YAML"),
        (["--cfg", "y" * 300], "there is no config yyy"),
        (["--cfg", ""], "there is no config ;"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_command_lines(argv, message):
    with pytest.raises(InputError) as error:
        settings(*argv)
    assert message in str(error.value)


def test_unreadable_config(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not YAML"):
        settings("--cfg", str(tmp_path / "a.yaml"))


def test_requirements_are_those_of_the_project():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements.txt").read_text().split()
    assert lines == [*project["dependencies"], "-e", "."]


def test_dataset_configs_hold_three_keys():
    for path in Path(ROOT / "configs").glob("*.yaml"):
        assert list(yaml.safe_load(path.read_text())) == ["DATASET"]


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("pretext_imagenet", "pretrained_kNN_imagenet"),
        ("pretrained_kNN_imagenet", "pretext_imagenet"),
    ],
)
def test_both_names_of_the_pretext_folder(tmp_path, asked, there):
    file = tmp_path / "usl-t_pretraining" / "pretrained" / there / "model.pth.tar"
    file.parent.mkdir(parents=True)
    file.touch()
    wanted = tmp_path / "usl-t_pretraining" / "pretrained" / asked / "model.pth.tar"
    assert find_input(str(wanted), "checkpoint") == file
    file.unlink()
    with pytest.raises(InputError, match="put model.pth.tar in one of the places tried: "):
        find_input(str(wanted), "checkpoint")
