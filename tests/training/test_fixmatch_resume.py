"""FixMatch: killed and resumed, the files that it writes, losses that are not finite."""

import math

import pandas as pd
import pytest
import torch
from helpers import STATE_DICTS, same
from toys.fixmatch import LAYOUT, sgd, small, tiny_views, train

from usl import InputError
from usl.models.wideresnet import WideResNet
from usl.training import layouts, resume
from usl.training.layouts import exporting, fixmatch_layout

LambdaLR = torch.optim.lr_scheduler.LambdaLR


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trained = train(folder)
    return folder, trained


FILES = ("checkpoint.pth", "checkpoint.pth.tar", "model_best.pth.tar")


@pytest.mark.parametrize("save_every", [0, 2])
@pytest.mark.parametrize("die_at", range(6))
def test_killed_at_any_step_and_resumed(whole, tmp_path, die_at, save_every):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, die_at=die_at, save_every=save_every)
    views = tiny_views()
    rest = train(tmp_path, views=views, save_every=save_every)
    done = len(views.given) // 3
    assert done == 6 - (3 * (die_at // 3) if not save_every else (0, 0, 2, 3, 4, 4)[die_at])
    for name in FILES:
        same(torch.load(tmp_path / name), torch.load(whole[0] / name), name)
    for name, weights in whole[1].network.state_dict().items():
        assert torch.equal(rest.network.state_dict()[name], weights), name
    columns = [c for c in whole[1].metrics if c != "images_per_second"]
    assert rest.metrics[columns].equals(whole[1].metrics[columns])
    assert pd.read_csv(tmp_path / "metrics.csv")[columns].equals(
        pd.read_csv(whole[0] / "metrics.csv")[columns]
    )


@pytest.mark.parametrize("file", range(8))
def test_killed_between_two_files(whole, tmp_path, monkeypatch, file):
    written = []

    def killed(path):
        if len(written) == file:
            raise KeyboardInterrupt
        written.append(path.name)
        return resume_replacing(path)

    resume_replacing = resume.replacing
    for module in (resume, layouts):
        monkeypatch.setattr(module, "replacing", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    monkeypatch.undo()
    train(tmp_path)
    for name in FILES:
        same(torch.load(tmp_path / name), torch.load(whole[0] / name), name)


def test_the_files_of_fixmatch_pytorch(tmp_path):
    accuracies, evaluated = iter([30.0, 10.0, 50.0, 20.0]), []

    network = small()

    def evaluate(tested):
        assert not tested.training
        if tested is network:
            return {"accuracy": 1.0}
        evaluated.append({k: v.clone() for k, v in tested.state_dict().items()})
        return {"accuracy": next(accuracies)}

    train(tmp_path, network=network, per_epoch=2, steps=7, evaluate=evaluate)
    last, best = (torch.load(tmp_path / f"{n}.pth.tar") for n in ("checkpoint", "model_best"))
    assert set(last) == set(best) == LAYOUT
    assert (last["epoch"], last["acc"], last["best_acc"]) == (4, 20, 50)
    assert (best["epoch"], best["acc"], best["best_acc"]) == (3, 50, 50)
    # What was tested is the average, not the weights.
    same(dict(last["ema_state_dict"]), evaluated[3])
    same(dict(best["ema_state_dict"]), evaluated[2])
    same(dict(last["state_dict"]), dict(network.state_dict()))
    weights = "linear.weight"
    assert not torch.equal(last["state_dict"][weights], last["ema_state_dict"][weights])
    small().load_state_dict(last["ema_state_dict"])
    optimizer = sgd(network)
    optimizer.load_state_dict(last["optimizer"])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]
    rate = 0.1 * math.cos(7 * math.pi * 6 / (16 * 7))
    assert last["scheduler"]["last_epoch"] == 7
    assert last["scheduler"]["_last_lr"] == [pytest.approx(rate)] * 2
    # Another trainer takes up optimizer and scheduler, and goes on with its schedule.
    other = small()
    optimizer = torch.optim.SGD(sgd(other).param_groups, lr=0.1, momentum=0.9, nesterov=True)

    def factor(step):
        return math.cos(7 * math.pi * step / (16 * 20))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    other.load_state_dict(last["state_dict"])
    optimizer.load_state_dict(last["optimizer"])
    schedule.load_state_dict(last["scheduler"])
    other(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    schedule.step()
    assert schedule.last_epoch == 8
    assert schedule.get_last_lr() == [pytest.approx(0.1 * factor(8))] * 2
    assert {key for key in LambdaLR(optimizer, factor).state_dict()} == set(last["scheduler"])
    # Without an average the weights are tested, and the place of the average stays empty.
    metrics = pd.read_csv(tmp_path / "metrics.csv")
    assert metrics["accuracy/raw"].tolist() == [1.0] * 4
    train(tmp_path / "plain", ema=0.0, steps=3)
    plain = torch.load(tmp_path / "plain" / "model_best.pth.tar")
    assert set(plain) == LAYOUT and plain["ema_state_dict"] is None


def test_the_names_of_the_released_network(tmp_path):
    expected = STATE_DICTS["wrn_28_2"]
    weights = WideResNet(28, 2).state_dict()
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1}]}
    content = {"model": weights, "ema_model": weights, "optimizer": optimizer, "epoch": 1}
    row = {"accuracy": 1.0, "lr": 0.1}
    exporting(tmp_path, fixmatch_layout(0.03))(content | {"step": 2, "best": 1.0}, row)
    for name in FILES[1:]:
        for key in ("state_dict", "ema_state_dict"):
            found = torch.load(tmp_path / name)[key]
            assert {k: list(v.shape) for k, v in found.items()} == expected


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(whole, tmp_path):
    message = f"the loss is nan before step 6; the last good checkpoint is {tmp_path}/check"
    with pytest.raises(InputError, match=message):
        train(tmp_path, spoil_at=4)
    kept = torch.load(tmp_path / "checkpoint.pth")
    assert kept["step"] == 3
    assert all(torch.isfinite(weights).all() for weights in kept["model"].values())
    assert torch.load(tmp_path / "checkpoint.pth.tar")["epoch"] == 1
    # And from there it goes on to where it would have come.
    train(tmp_path)
    for name in FILES:
        same(torch.load(tmp_path / name), torch.load(whole[0] / name), name)
