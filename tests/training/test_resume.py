"""Trainings that are killed, resumed, or come upon what they cannot go on from."""

import pytest
import torch
from toys.loop import Toy

from usl import InputError
from usl.training.loop import check_own
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


def test_settings_that_an_earlier_version_did_not_have(tmp_path):
    Toy(tmp_path, stop=5).run(settings={"MODEL": {"ARCH": "a"}})
    path = tmp_path / CHECKPOINT
    content = torch.load(path)
    assert content["settings"]["plan"].pop("start") == 0
    torch.save(content, path)
    new = {"MODEL": {"ARCH": "a", "SIZE": "", "WIDTH": 0, "SYNC": False}}
    toy = Toy(tmp_path, stop=10)
    toy.run(settings=new)
    assert len(toy.seen) == 5
    # What is not neutral may change the training.
    with pytest.raises(InputError, match="MODEL.DEPTH was None and is 3"):
        Toy(tmp_path).run(settings={"MODEL": new["MODEL"] | {"DEPTH": 3}})


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


def test_a_checkpoint_from_elsewhere_and_the_settings_of_this_run(tmp_path):
    whole = Toy(tmp_path / "other", stop=10)
    (tmp_path / "other").mkdir()
    whole.run()
    given = tmp_path / "other" / CHECKPOINT
    (tmp_path / "own").mkdir()
    # A finished training of its own, begun otherwise, does not count.
    Toy(tmp_path / "own").run()
    toy = Toy(tmp_path / "own")
    toy.optimizer.param_groups[0]["momentum"] = 0.25
    found = toy.run(resume=given)
    assert len(toy.seen) == 5 and found.began == 0
    assert toy.optimizer.param_groups[0]["momentum"] == 0.25
    # The same again goes on from where this got to.
    again = Toy(tmp_path / "own")
    again.run(resume=given)
    assert again.seen == [] and torch.equal(again.weights(), toy.weights())


def test_a_checkpoint_without_metrics_begins_where_it_stands(tmp_path):
    (tmp_path / "a").mkdir()
    Toy(tmp_path / "a", stop=5).run()
    content = torch.load(tmp_path / "a" / CHECKPOINT)
    old = {"state_dict": content["model"], "optimizer": content["optimizer"], "epoch": 1}
    torch.save(old, tmp_path / "old.pth.tar")
    found = Toy().run(resume=tmp_path / "old.pth.tar")
    assert found.began == 5 and found.metrics["step"].tolist() == [10, 15]


def test_losses_that_are_scaled_only_now(tmp_path):
    Toy(tmp_path, stop=5).run()
    content = torch.load(tmp_path / CHECKPOINT)
    assert content["scaler"] == {}
    toy = Toy(precision="float16")
    toy.run(resume=tmp_path / CHECKPOINT)
    assert len(toy.seen) == 10


def test_the_scale_of_losses_goes_on(tmp_path):
    whole = Toy(tmp_path / "whole", precision="float16")
    (tmp_path / "whole").mkdir()
    whole.run()
    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path, precision="float16", die_at=8).run()
    rest = Toy(tmp_path, precision="float16")
    rest.run()
    assert torch.equal(rest.weights(), whole.weights())
    scalers = [torch.load(path / CHECKPOINT)["scaler"] for path in (tmp_path / "whole", tmp_path)]
    # It begins at 65536, too much for these losses.
    assert scalers[0] == scalers[1] and scalers[0]["scale"] < 65536


def test_an_optimizer_of_another_kind(tmp_path):
    Toy(tmp_path, stop=5).run()
    content = torch.load(tmp_path / CHECKPOINT)
    good = content["optimizer"]
    state = {one: {"mu": kept["momentum_buffer"]} for one, kept in good["state"].items()}
    for bad in (None, {}, {"state": {}}, good | {"state": state}, good | {"param_groups": []}):
        torch.save(content | {"optimizer": bad}, tmp_path / "other.pth")
        with pytest.raises(InputError, match="other.pth has no optimizer of this training; give"):
            Toy().run(resume=tmp_path / "other.pth")


def test_a_training_that_is_to_stop_where_it_was_not_tested(tmp_path):
    def evaluate(network):
        return {"accuracy": 7.0}

    with pytest.raises(KeyboardInterrupt):
        Toy(tmp_path, evaluate_every=3, die_at=8, save_every=1).run(evaluate=evaluate)
    found = Toy(tmp_path, evaluate_every=3, stop=8, save_every=1).run(evaluate=evaluate)
    assert found.metrics["accuracy"].tolist() == [7.0]
    assert torch.load(tmp_path / CHECKPOINT)["metrics"][-1]["accuracy"] == 7.0


def test_an_epoch_that_was_stopped_in_the_middle_has_one_row(tmp_path):
    expected = Toy().run().metrics
    found = Toy(tmp_path, stop=7).run().metrics
    assert found["epoch"].tolist() == [1, 2] and found["step"].tolist() == [5, 7]
    found = Toy(tmp_path, stop=9).run().metrics
    assert found["epoch"].tolist() == [1, 2] and found["step"].tolist() == [5, 9]
    found = Toy(tmp_path).run().metrics
    for column in ("epoch", "step", "lr", "loss", "half"):
        assert found[column].tolist() == pytest.approx(expected[column].tolist())


def test_what_cannot_be_tested_loses_no_epoch(tmp_path):
    def evaluate(network):
        raise InputError("cannot read a.png")

    with pytest.raises(InputError, match="cannot read a.png"):
        Toy(tmp_path, evaluate_every=3).run(evaluate=evaluate)
    toy = Toy(tmp_path, evaluate_every=3)
    found = toy.run(evaluate=lambda network: {"accuracy": 7.0}).metrics
    assert toy.seen == [] and found["step"].tolist() == [5, 10, 15]
    assert found["accuracy"].tolist()[-1] == 7.0


def test_what_own_checkpoints_do_not_allow_is_known_before(tmp_path):
    def check(resume=True, settings=None, **plan):
        plan = Toy(**plan).plan
        check_own(plan, images=22, folder=tmp_path, settings=settings or {}, resume=resume)

    check()
    Toy(tmp_path, stop=10).run(settings={"LR": 1})
    check(settings={"LR": 1})
    check(resume=False)
    with pytest.raises(InputError, match="is of other settings: LR was 1 and is 2; choose another"):
        check(settings={"LR": 2})
    with pytest.raises(InputError, match="step 10 of 5 is done already; set more `stop`, test, or"):
        check(settings={"LR": 1}, stop=5)
    torch.save({"state_dict": {}}, tmp_path / CHECKPOINT)
    with pytest.raises(InputError, match="was not made by this training; remove it"):
        check()


def test_processes_that_are_not_at_the_same_step(monkeypatch):
    # What three processes at steps 2, 2 and 5 would add up to.
    total = torch.tensor([9.0, 33.0], dtype=torch.float64)
    toy = Toy(batch_size=6)
    monkeypatch.setattr("usl.training.resume.distributed.total", lambda x: total)
    monkeypatch.setattr("usl.training.resume.distributed.world_size", lambda: 3)
    with pytest.raises(InputError, match="processes begin at different steps, this one at 0; let"):
        toy.run()


def test_fewer_steps_than_are_done(tmp_path):
    Toy(tmp_path, stop=10).run()
    assert Toy(tmp_path, stop=10).run().metrics["step"].iloc[-1] == 10
    with pytest.raises(InputError, match="step 10 of 5 is done already; .* with `resume` none"):
        Toy(tmp_path, stop=5).run()
    assert Toy(tmp_path, stop=5).run(resume=False).metrics["step"].iloc[-1] == 5
