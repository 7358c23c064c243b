"""The comparison of selectors on files of images, and what becomes of its trainings."""

import contextlib
import csv
import os
import signal
import subprocess
import sys
import time

import pytest
from commands import COMPARE
from filelock import FileLock
from helpers import LIMIT, ROOT

from usl import InputError


@pytest.fixture
def comparison(small_folder, tmp_path):
    """Words for a comparison on the folder, whose FixMatch has these lines more."""

    def words(*options, more=""):
        config = tmp_path / "fixmatch.yaml"
        config.write_text(
            f"DATASET:\n  NAME: folder\n  ROOT_DIR: {small_folder}\n  TRANSFORM_NAME: imagenet\n"
            "  IMAGE_SIZE: 32\nMODEL:\n  ARCH: SmallResNet\n  WIDTH: 4\n  DEPTH: 10\nSTEPS: 2\n"
            f"DATALOADER:\n  BATCH_SIZE: 4\nFIXMATCH:\n  EVAL_STEPS: 1\n{more}"
        )
        return (
            "--opts", "DATASET.NAME", "folder", "DATASET.ROOT_DIR", small_folder,
            "MODEL.ARCH", "pixels", "USL.SEEDS", "[1]", "USL.KNN_K", 5, "COMPARE.BUDGETS", "[4]",
            "COMPARE.SELECTORS", "[random]", "COMPARE.TRAIN.SELECTORS", "[random]",
            "COMPARE.TRAIN.BUDGETS", "[4]", "COMPARE.TRAIN.SEEDS", "[1]",
            "COMPARE.TRAIN.FIXMATCH", config, "RUN_DIR", tmp_path / "run", *options,
        )  # fmt: skip

    return words


@pytest.mark.slow
def test_lists_name_the_files(comparison, tmp_path, script):
    script(COMPARE, *comparison())
    (path,) = (tmp_path / "run" / "lists" / "4").iterdir()
    with path.open() as file:
        rows = list(csv.DictReader(file))
    names = sorted(f"{kind}/{number}.png" for kind in "abcd" for number in range(9))
    assert len(rows) == 4
    assert all(row["ImageID"] == names[int(row["Index"])] for row in rows)
    assert (tmp_path / "run" / "trainings.csv").exists()


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        ("classes", "", "fixmatch.yaml has another DATASET.SUBSET than the picks; give both the s"),
        ("names", "", "fixmatch.yaml has another DATASET.IMAGE_LIST than the picks; give both"),
        ("", "SKIP_SAVE: True\n", "fixmatch.yaml has SKIP_SAVE True; leave it False"),
        ("", "EVAL_ONLY: True\n", "fixmatch.yaml has EVAL_ONLY True; leave it False"),
    ],
)
def test_trainings_that_would_be_on_other_images(
    comparison, tmp_path, script, options, more, message
):
    (tmp_path / "classes").write_text("a\nb\n")
    (tmp_path / "names").write_text("".join(f"{kind}/{n}.png\n" for kind in "abcd" for n in "012"))
    key = {"classes": "DATASET.SUBSET", "names": "DATASET.IMAGE_LIST"}.get(options)
    with pytest.raises(InputError, match=message):
        script(COMPARE, *comparison(*((key, tmp_path / options) if key else ()), more=more))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_comparison_that_is_ended_takes_its_training_along(comparison, tmp_path):
    words = [str(word) for word in comparison(more="CHECKPOINT_STEPS: 1\n")]
    config = tmp_path / "fixmatch.yaml"
    config.write_text(config.read_text().replace("STEPS: 2", "STEPS: 100000"))
    script = ROOT / COMPARE
    driver = subprocess.Popen(
        [sys.executable, script.name, *words], cwd=script.parent, start_new_session=True
    )
    deadline = time.monotonic() + LIMIT
    try:
        while not list(tmp_path.glob("run/trainings/*/seed1/checkpoint.pth")):
            assert driver.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        driver.terminate()
        assert driver.wait() == 128 + signal.SIGTERM
        # The training has let go of its folder.
        (lock,) = tmp_path.glob("run/trainings/*/.lock")
        with FileLock(lock, timeout=0):
            pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
