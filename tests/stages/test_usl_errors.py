"""Bad features and settings of the scripts of USL."""

import subprocess
import sys
from subprocess import PIPE

import numpy as np
import pytest
import torch
from commands import CIFAR, FEATURES
from helpers import printed_alone
from safetensors.torch import save_file

from usl import InputError, select
from usl.stages.pool import read_features
from usl.stages.usl import features_defaults


def features_file(tmp_path, array):
    np.save(tmp_path / "x.npy", array)
    return ("FEATURES.PATH", tmp_path / "x.npy")


GOOD = np.random.RandomState(0).randn(30, 4)
BAD_FEATURES = {
    "none": (None, "there is no file of features (FEATURES.PATH); put x.npy in"),
    "nan": (
        np.where(np.eye(30, 4), np.nan, GOOD),
        "have NaN or infinite values in 4 of 30 rows (0, 1, 2, 3)",
    ),
    "one dimension": (GOOD[0], "have shape (4,); give a table of (images, dimensions)"),
    "three dimensions": (GOOD[None], "have shape (1, 30, 4)"),
    "texts": (np.array([["a"]]), "holds <U1 values; give a table of shape"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_bad_features(tmp_path, script, name):
    array, message = BAD_FEATURES[name]
    options = ("FEATURES.PATH", tmp_path / "x.npy")
    if array is not None:
        options = features_file(tmp_path, array)
    with pytest.raises(InputError) as error:
        script(FEATURES, "--opts", *options, "RUN_DIR", tmp_path / "run")
    assert message in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("USL.NUM_SELECTED_SAMPLES", 0), "a budget of 0 picks from 30 images; choose 1 to 30"),
        (("USL.NUM_SELECTED_SAMPLES", -1), "a budget of -1 picks"),
        (("USL.NUM_SELECTED_SAMPLES", 31), "a budget of 31 picks"),
        (("USL.KNN_K", 31), "USL.KNN_K is 31; choose 2 to 30, the number of images"),
        (("USL.KNN_K", 1), "USL.KNN_K is 1; choose 2 to 30"),
        (("USL.KNN_K", -1), "USL.KNN_K is -1"),
        (("USL.REG.HORIZON", "far"), "unknown USL.REG.HORIZON 'far'; choose dist or num"),
        (("KNN.BACKEND", "abacus"), "unknown KNN.BACKEND 'abacus'"),
        (("USL.K_MEANS_NITERS", 0), "USL.K_MEANS_NITERS is 0; choose at least 1"),
        (("USL.SEEDS", "[]"), "USL.SEEDS is empty; give at least one seed"),
        (("USL.SEEDS", "[3, -1]"), "USL.SEEDS has -1; give numbers from 0 to 4294967295"),
        (("DEVICE", "abacus"), "DEVICE abacus is not on this machine"),
        (("MODEL.ARCH", "x"), "MODEL is a setting of another stage"),
    ],
)
def test_bad_settings_of_features(tmp_path, script, options, message):
    given = (*features_file(tmp_path, GOOD), "RUN_DIR", tmp_path / "run")
    start = ("USL.NUM_SELECTED_SAMPLES", 5, "USL.KNN_K", 5)
    with pytest.raises(InputError) as error:
        script(FEATURES, "--opts", *given, *start, *options)
    assert message in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DATASET.NAME", "mnist"), "unknown DATASET.NAME 'mnist'; choose one of cifar10"),
        (("MODEL.ARCH", "AlexNet"), "unknown MODEL.ARCH 'AlexNet'; did you mean torch"),
        (
            ("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", ""),
            "needs a MODEL.PRETRAIN_PATH; give one",
        ),
        (
            ("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", "nowhere.pth"),
            "there is no checkpoint (MODEL.PRETRAIN_PATH); put nowhere.pth in one of the places",
        ),
        (
            ("MODEL.ARCH", "ResNet18", "DATASET.TRANSFORM_NAME", "x"),
            "unknown DATASET.TRANSFORM_NAME 'x'; choose one of CLD-cifar10",
        ),
        (("USL.NUM_SELECTED_SAMPLES", 1438), "a budget of 1438 picks from 1437 images"),
        (("DATALOADER.BATCH_SIZE", 0), "DATALOADER.BATCH_SIZE is 0; choose at least 1"),
    ],
)
def test_bad_settings_of_images(tmp_path, script, options, message):
    argv = ("--cfg", "configs/digits_usl.yaml", "--opts", "RUN_DIR", tmp_path / "run")
    argv = (*argv, "MODEL.ARCH", "pixels")
    with pytest.raises(InputError) as error:
        script(CIFAR, *argv, *options)
    assert message in str(error.value) and not (tmp_path / "run").exists()


def test_images_in_files_are_for_other_scripts(image_folder, script, tmp_path):
    options = ("DATASET.NAME", "folder", "DATASET.ROOT_DIR", image_folder, "RUN_DIR", tmp_path)
    with pytest.raises(InputError, match="whose images are files; choose .* use usl-imagenet.py"):
        script(CIFAR, "--opts", *options)


def test_nan_rows_are_listed_and_can_be_left_out(tmp_path, script, capsys):
    x = np.random.RandomState(0).randn(60, 4)
    x[[2, 30, 59]] = np.nan
    options = (*features_file(tmp_path, x), "RUN_DIR", tmp_path / "run", "USL.SEEDS", "[1]")
    options += ("USL.NUM_SELECTED_SAMPLES", 9, "USL.KNN_K", 5)
    message = r"in 3 of 60 rows \(2, 30, 59\); mend .* these rows, with FEATURES.EXCLUDE nan"
    with pytest.raises(InputError, match=message):
        script(FEATURES, "--opts", *options)
    script(FEATURES, "--opts", *options, "FEATURES.EXCLUDE", "nan")
    picks = printed_alone(capsys.readouterr().out)
    rows = np.delete(np.arange(60), [2, 30, 59])
    assert np.load(tmp_path / "run" / "rows.npy").tolist() == rows.tolist()
    # The picks keep the numbers of the file: they are those of the rows kept, by their own names.
    alone = select(x[rows], 9, k=5, seed=1).picks.numpy()
    assert picks == rows[alone].tolist()
    assert np.load(tmp_path / "run" / "selected_indices_9_1.npy").tolist() == picks
    assert (tmp_path / "run" / "report.html").exists()
    # The same rows by a list, in any order.
    (tmp_path / "bad.csv").write_text("Index\n59\n2\n30\n")
    script(FEATURES, "--opts", *options, "FEATURES.EXCLUDE", tmp_path / "bad.csv")
    assert printed_alone(capsys.readouterr().out) == picks
    # What a list leaves in is called by its row in the file.
    (tmp_path / "bad.csv").write_text("Index\n0\n1\n2\n59\n")
    with pytest.raises(InputError, match=r"in 1 of 56 rows \(30\); mend"):
        script(FEATURES, "--opts", *options, "FEATURES.EXCLUDE", tmp_path / "bad.csv")


def test_a_tensor_gives_the_features_of_the_array(tmp_path):
    x = np.random.RandomState(0).randn(60, 4)
    x[7] = np.nan
    np.save(tmp_path / "x.npy", x)
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    found = []
    for name in ("x.npy", "x.pt"):
        section = features_defaults().FEATURES
        section.PATH, section.EXCLUDE = str(tmp_path / name), "nan"
        found.append(read_features(section))
    assert found[0].features.fingerprint == found[1].features.fingerprint
    assert found[1].features.values.dtype == np.float64 and found[1].size == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Index\n0\n30\n", "bad.csv has the row 30; give rows from 0 to 29"),
        ("Row\n0\n", "has no column Index, only Row"),
        ("Index\n" + "\n".join(map(str, range(30))), "FEATURES.EXCLUDE leaves out all rows of"),
    ],
)
def test_rows_that_cannot_be_left_out(tmp_path, script, content, message):
    (tmp_path / "bad.csv").write_text(content)
    options = (*features_file(tmp_path, GOOD), "FEATURES.EXCLUDE", tmp_path / "bad.csv")
    with pytest.raises(InputError, match=message):
        script(FEATURES, "--opts", *options, "RUN_DIR", tmp_path / "run")


def test_what_is_odd_about_features_is_said(tmp_path, script, capsys):
    x = np.random.RandomState(0).randn(60, 4)
    x[:5] = x[7]
    x[9] = 0
    x[:, 3] = 0
    options = (*features_file(tmp_path, x), "RUN_DIR", tmp_path / "run", "USL.SEEDS", "[1]")
    script(FEATURES, "--opts", *options, "USL.NUM_SELECTED_SAMPLES", 3, "USL.KNN_K", 5)
    log = capsys.readouterr().err
    for remark in (
        "features: 1 rows are all zeros",
        "features: 5 rows are exact copies of earlier rows",
        "features: 1 columns have the same value in every row",
    ):
        assert remark in log


@pytest.mark.parametrize("name", ["x.npz", "x.pt", "x.safetensors"])
def test_other_files_of_one_array(tmp_path, script, capsys, name):
    x = np.random.RandomState(0).randn(40, 4).astype(np.float32)
    np.savez(tmp_path / "x.npz", x)
    torch.save(torch.from_numpy(x), tmp_path / "x.pt")
    save_file({"features": torch.from_numpy(x)}, tmp_path / "x.safetensors")
    np.save(tmp_path / "x.npy", x)
    found = []
    for file in (name, "x.npy"):
        script(
            FEATURES, "--opts", "FEATURES.PATH", tmp_path / file, "RUN_DIR", tmp_path / file[2:],
            "USL.NUM_SELECTED_SAMPLES", 5, "USL.KNN_K", 5, "USL.SEEDS", "[1]",
        )  # fmt: skip
        found.append(printed_alone(capsys.readouterr().out))
    assert found[0] == found[1]


def test_a_second_script_at_work_in_the_folder_is_refused(tmp_path, script):
    options = (*features_file(tmp_path, GOOD), "RUN_DIR", tmp_path / "run")
    (tmp_path / "run").mkdir()
    code = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="run; wait for it, or choose another RUN_NAME"):
            script(FEATURES, "--opts", *options, "USL.KNN_K", 5, "USL.NUM_SELECTED_SAMPLES", 3)
        other.stdin.close()
