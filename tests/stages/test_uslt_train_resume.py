"""Training of USL-T that was killed, went wrong, or has other inputs than before."""

import math

import numpy as np
import pytest
from commands import FOLDER_PRETRAIN, PRETRAIN, folder_pretraining, pretraining
from helpers import equal_training, load

from usl import InputError
from usl.training.uslt_losses import LocalCriterion

pytestmark = pytest.mark.usefixtures("no_pictures")


def test_killed_in_the_second_epoch_and_resumed(chained, tiny_cifar, tmp_path, script, monkeypatch):
    forward, calls = LocalCriterion.forward, []

    def dying(self, *views):
        calls.append(self)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return forward(self, *views)

    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    argv = pretraining(tiny_cifar, neighbors, tmp_path / "run")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LocalCriterion, "forward", dying)
        script(PRETRAIN, *argv)
    assert load(tmp_path / "run")["step"] == 5
    script(PRETRAIN, *argv)
    equal_training(load(tmp_path / "run"), load(chained[0] / "trained"))

    def without_times(folder):
        rows = [x.split(",") for x in (folder / "metrics.csv").read_text().splitlines()]
        place = rows[0].index("images_per_second")
        return [row[:place] + row[place + 1 :] for row in rows]

    assert without_times(tmp_path / "run") == without_times(chained[0] / "trained")


def test_other_neighbours_do_not_go_on_from_the_same_checkpoint(
    chained, tiny_cifar, tmp_path, script
):
    neighbors = np.load(chained[0] / "mined" / "topk-train-neighbors.npy")
    np.save(tmp_path / "same.npy", neighbors)
    np.save(tmp_path / "other.npy", neighbors[:, [0, *range(20, 0, -1)]])
    before = (chained[0] / "trained" / "checkpoint.pth").read_bytes()
    # An input is known by its content, wherever it lies.
    script(PRETRAIN, *pretraining(tiny_cifar, tmp_path / "same.npy", chained[0] / "trained"))
    message = "is of other settings: USLT_PRETRAIN.TOPK_NEIGHBORS_PATH was"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(tiny_cifar, tmp_path / "other.npy", chained[0] / "trained"))
    assert (chained[0] / "trained" / "checkpoint.pth").read_bytes() == before


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(
    chained, tiny_cifar, tmp_path, script, monkeypatch
):
    forward, calls = LocalCriterion.forward, []

    def spoiled(self, *views):
        calls.append(self)
        return forward(self, *views) * (math.nan if len(calls) == 7 else 1)

    monkeypatch.setattr(LocalCriterion, "forward", spoiled)
    neighbors = chained[0] / "mined" / "topk-train-neighbors.npy"
    message = f"the loss is nan before step 10; the last good checkpoint is {tmp_path}/checkpoint"
    with pytest.raises(InputError, match=message):
        script(PRETRAIN, *pretraining(tiny_cifar, neighbors, tmp_path))
    kept = load(tmp_path)
    assert kept["step"] == 5 and all(v.isfinite().all() for v in kept["model"].values())
    # A rate that is too high ends the same way, before anything was saved.
    monkeypatch.undo()
    with pytest.raises(
        InputError, match="before step 5; nothing was saved yet; lower OPTIMIZER.LR"
    ):
        argv = pretraining(tiny_cifar, neighbors, tmp_path / "high")
        script(PRETRAIN, *argv, "OPTIMIZER.LR", "1e30")
    assert not (tmp_path / "high" / "checkpoint.pth").exists()


def test_training_on_a_folder_killed_and_resumed(
    small_folder, folder_run, tmp_path, script, monkeypatch
):
    forward, calls = LocalCriterion.forward, []

    def dying(self, *views):
        calls.append(self)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return forward(self, *views)

    monkeypatch.setattr(LocalCriterion, "forward", dying)
    with pytest.raises(KeyboardInterrupt):
        script(FOLDER_PRETRAIN, *folder_pretraining(small_folder, tmp_path))
    assert load(tmp_path)["step"] == 6
    script(FOLDER_PRETRAIN, *folder_pretraining(small_folder, tmp_path))
    equal_training(load(tmp_path), load(folder_run))
