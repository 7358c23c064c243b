"""Settings: defaults, files, options, and every one that is not right."""

import pytest
from commands import CIFAR, PRETRAIN
from helpers import ROOT, settings, value

from usl import InputError
from usl.config.parse import as_dict, dump
from usl.stages.random import random_defaults
from usl.stages.usl import usl_defaults

STAGE = ROOT / "selective_labeling"

# Every key of the original's USL and random stages, with its default.
ORIGINAL = {
    "RUN_NAME": "", "SAVE_DIR_EXIST_OK": True, "RUN_DIR": "", "SKIP_SAVE": False,
    "OPTS_IN_RUN_NAME": False, "RECOMPUTE_ALL": True, "RECOMPUTE_NUM_DEP": True,
    "SAVE_DIR": "saved",
    "DATASET.NAME": "", "DATASET.ROOT_DIR": "../data", "DATASET.TRANSFORM_NAME": "",
    "DATALOADER.BATCH_SIZE": 128, "DATALOADER.WORKERS": 2,
    "MODEL.ARCH": "ResNet18", "MODEL.PRETRAIN_PATH": "",
    # Not 512 as the original, which would refuse its own encoders of ImageNet.
    "MODEL.BACKBONE_DIM": 0,
}  # fmt: skip
USL = {
    "USL.NUM_SELECTED_SAMPLES": 40, "USL.KNN_K": 400, "USL.K_MEANS_NITERS": 200,
    "USL.SEEDS": [1, 2, 3, 4, 5], "USL.REG.NITERS": 10, "USL.REG.W": 0.5, "USL.REG.MOMENTUM": 0.9,
    "USL.REG.HORIZON_DIST": 4.0, "USL.REG.ALPHA": 0.5, "USL.REG.HORIZON_NUM": 128,
    "USL.REG.EXCLUDE_SAME_CLUSTER": False,
}  # fmt: skip
RANDOM = {"RANDOM.SEEDS": [1, 2, 3, 4, 5], "RANDOM.NUM_SELECTED_SAMPLES": 40}


@pytest.mark.parametrize(
    ("defaults", "expected"),
    [(usl_defaults, ORIGINAL | USL), (random_defaults, ORIGINAL | RANDOM)],
)
def test_the_originals_keys_and_defaults_stay(defaults, expected):
    cfg = defaults()
    assert {key: value(cfg, key) for key in expected} == expected


def test_a_yaml_written_for_the_original_works_unchanged(tmp_path):
    (tmp_path / "old.yaml").write_text(
        "RUN_NAME: 'cifar10_usl'\nSKIP_SAVE: False\nRECOMPUTE_ALL: True\nDATASET:\n"
        "  NAME: cifar10\n  TRANSFORM_NAME: CLD-cifar10\nMODEL:\n  ARCH: ResNet18\n"
        "  PRETRAIN_PATH: 'pretrained/x.pth'\nUSL:\n  REG:\n    HORIZON_DIST: 1\n"
    )
    cfg = settings(CIFAR, "--cfg", str(tmp_path / "old.yaml"))
    assert cfg.USL.REG.HORIZON_DIST == 1.0 and type(cfg.USL.REG.HORIZON_DIST) is float
    assert str(STAGE / "pretrained/x.pth") == cfg.MODEL.PRETRAIN_PATH


def test_a_seed_that_nobody_chose_is_the_default(tmp_path):
    (tmp_path / "old.yaml").write_text("SEED: null\n")
    assert settings(PRETRAIN, "--cfg", str(tmp_path / "old.yaml")).SEED == 42


def test_order_is_defaults_base_file_options(tmp_path):
    (tmp_path / "base.yaml").write_text("USL: {KNN_K: 5, NUM_SELECTED_SAMPLES: 6, SEEDS: [7]}")
    (tmp_path / "sub").mkdir()
    child = tmp_path / "sub" / "child.yaml"
    child.write_text("BASE: ../base.yaml\nUSL: {KNN_K: 8, SEEDS: [9]}")
    cfg = settings(CIFAR, "--cfg", str(child), "--opts", "USL.SEEDS", "[3, 4]")
    assert (cfg.USL.NUM_SELECTED_SAMPLES, cfg.USL.KNN_K, cfg.USL.SEEDS) == (6, 8, [3, 4])
    assert cfg.USL.K_MEANS_NITERS == 200 and cfg.is_frozen()


def test_trees_are_fresh():
    settings(CIFAR, "--opts", "USL.KNN_K", "3")
    assert settings(CIFAR).USL.KNN_K == 400


def test_options_in_the_run_name():
    cfg = settings(CIFAR, "--opts", "OPTS_IN_RUN_NAME", "True", "RUN_NAME", "r", "USL.KNN_K", "9")
    assert cfg.RUN_NAME == "r_OPTS_IN_RUN_NAME_True_RUN_NAME_r_USL.KNN_K_9"


def test_a_dumped_config_stands_alone(tmp_path):
    cfg = settings(CIFAR, "--cfg", str(STAGE / "configs/cifar100_usl.yaml"))
    (tmp_path / "config.yaml").write_text(dump(cfg))
    assert as_dict(settings(CIFAR, "--cfg", str(tmp_path / "config.yaml"))) == as_dict(cfg)


@pytest.mark.parametrize("text", ["010", "2024_11_05", "1:30", "yes", "null", "a #1", "a: b"])
def test_texts_of_the_command_line_are_taken_as_they_stand(text):
    assert text == settings(CIFAR, "--opts", "RUN_NAME", text).RUN_NAME


def test_options_add_up():
    cfg = settings(CIFAR, "--opts", "USL.KNN_K", "3", "--opts", "USL.SEEDS", "[]")
    assert (cfg.USL.KNN_K, cfg.USL.SEEDS) == (3, [])


def test_numbers_that_yaml_takes_for_texts():
    assert settings(CIFAR, "--opts", "USL.REG.W", "1e-4").USL.REG.W == 1e-4


BAD_FILES = {
    "USL: {KNN: 3}": "unknown key USL.KNN; did you mean USL.KNN_K?",
    "KNN_K: 3": "unknown key KNN_K; did you mean USL.KNN_K?",
    "NONSENSE_XYZ: 3": "unknown key NONSENSE_XYZ; known: BASE, RUN_NAME",
    "USL.KNN_K: 5": "USL.KNN_K is written with a dot; in a YAML its parts stand below each other",
    "RANDOM: {SEEDS: [1]}": "RANDOM is a setting of another stage (selective_labeling/random-cif",
    "SELECT: {PATH: x}": "unknown key SELECT",
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
        settings(CIFAR, "--cfg", str(path))
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
        (["--cfg", ""], "is a folder, and a file is needed"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_bad_command_lines(argv, message):
    with pytest.raises(InputError) as error:
        settings(CIFAR, *argv)
    assert message in str(error.value)


def test_unreadable_config(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="is not YAML"):
        settings(CIFAR, "--cfg", str(tmp_path / "a.yaml"))
