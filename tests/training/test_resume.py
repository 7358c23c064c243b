"""Trainings that are killed, resumed, or come upon what they cannot go on from."""

import pytest
import torch
from toys.loop import Toy

from usl import InputError
from usl.training.resume import CHECKPOINT


@pytest.mark.parametrize("die_at", [0, 3, 5, 9, 14])
@pytest.mark.parametrize("save_every", [0, 2])
def test_killed_at_any_step_and_resumed(tmp_path, die_at, save_every):
    whole = Toy(ema=0.5)
    expected = whole.run()
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path, ema=0.5, die_at=die_at, save_every=save_every).run()
    rest = Toy(tmp_path, ema=0.5, save_every=save_every)
    found = rest.run()
    assert torch.equal(rest.weights(), whole.weights())
    for a, b in zip(expected.network.parameters(), found.network.parameters(), strict=True):
        assert torch.equal(a, b)
    for column in ("loss", "step", "lr"):
        assert found.metrics[column].tolist() == pytest.approx(expected.metrics[column].tolist())
    if save_every and die_at > 5:
        assert len(rest.seen) < 15 - 5


def test_a_finished_training_is_not_repeated(tmp_path):
    first = Toy(tmp_path)
    first.run()
    again = Toy(tmp_path)
    assert len(again.run().metrics) == 3 and again.seen == []
    assert torch.equal(first.weights(), again.weights())
    anew = Toy(tmp_path)
    anew.run(resume=False)
    assert len(anew.seen) == 15


def test_resuming_with_other_settings_says_which(tmp_path):
    Toy(tmp_path).run(settings={"OPTIMIZER": {"LR": 1}, "SEED": 3})
    with pytest.raises(InputError, match="OPTIMIZER.LR was 1 and is 2; SEED was 3 and is None"):
        Toy(tmp_path).run(settings={"OPTIMIZER": {"LR": 2}})
    with pytest.raises(InputError, match="plan.epochs was 3 and is 4"):
        Toy(tmp_path, epochs=4).run(settings={"OPTIMIZER": {"LR": 1}, "SEED": 3})


def test_a_checkpoint_of_something_else(tmp_path):
    torch.save({"model": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="was not made by this training; remove it"):
        Toy(tmp_path).run()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match="the loss is nan before step 10; the last good check"):
        Toy(tmp_path, spoil_at=8).run()
    kept = torch.load(tmp_path / CHECKPOINT)
    assert kept["step"] == 5 and all(torch.isfinite(v).all() for v in kept["model"].values())
    with pytest.raises(InputError, match="nothing was saved yet"):
        Toy(spoil_at=0).run()


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    Toy(tmp_path, steps=5).run()
    good = (tmp_path / CHECKPOINT).read_bytes()
    monkeypatch.setattr("os.fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match="cannot write .*checkpoint.pth: No space left"):
        Toy(tmp_path).run(resume=False)
    assert (tmp_path / CHECKPOINT).read_bytes() == good
    assert not list(tmp_path.glob(".*partial"))
