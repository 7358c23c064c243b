"""Where configs and inputs are found, and where paths start."""

import pytest
from commands import CIFAR
from helpers import ROOT, settings

from usl import InputError
from usl.config.paths import find_input

STAGE = ROOT / "selective_labeling"


def test_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("digits_usl.yaml", "selective_labeling/configs/digits_usl.yaml"):
        assert settings(CIFAR, "--cfg", name).RUN_NAME == "digits_usl"
    (tmp_path / "digits_usl.yaml").write_text("RUN_NAME: mine")
    assert settings(CIFAR, "--cfg", "digits_usl.yaml").RUN_NAME == "mine"


def test_paths_start_where_they_were_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("SAVE_DIR: out\nRUN_NAME: r")
    assert str(STAGE / "out" / "r") == settings(CIFAR, "--cfg", "a.yaml").RUN_DIR
    cfg = settings(
        CIFAR, "--cfg", "a.yaml", "--opts", "RUN_DIR", "here", "DATASET.ROOT_DIR", "../d"
    )
    assert str(tmp_path / "here") == cfg.RUN_DIR
    assert str(tmp_path.parent / "d") == cfg.DATASET.ROOT_DIR


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
