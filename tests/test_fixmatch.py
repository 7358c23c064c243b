"""FixMatch: the loss, the labelled stream, the step, the loop around it, the script, bad input."""

import copy
import csv
import json
import math
import re
import runpy
import subprocess
import sys
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, in_processes, make_cifar, same
from test_wideresnet import by_hand
from torch.nn import functional as F
from usl.data.labelled import Labelled
from usl.data.strong import RandAugmentChain, WeakChain
from usl.data.views import Views
from usl.models.encoders import new_network, save_encoder
from usl.steps.evaluation import Outcome, fixmatch_network, fixmatch_trials, mean_spread

from usl import InputError, distributed, steps
from usl.config import fixmatch_defaults, parse
from usl.data.datasets import ImageDataset, open_dataset
from usl.models.classifier import Classifier
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.wideresnet import WideResNet
from usl.training import fixmatch, loop
from usl.training.fixmatch import (
    FixMatch,
    exporting,
    fixmatch_step,
    labelled_stream,
    unlabelled_loss,
)
from usl.training.loop import Plan, fit

STAGE = ROOT / "semisup-fixmatch-cifar"
CPU = torch.device("cpu")
LIST, NUMBER = "FIXMATCH.LABELED_INDICES_PATH", "FIXMATCH.NUM_LABELED"
LAYOUT = {"epoch", "state_dict", "ema_state_dict", "acc", "best_acc", "optimizer", "scheduler"}
COLUMNS = ["dataset", "selector", "budget", "list", "seed", "accuracy", "time", "last20"]


def slow_unlabelled_loss(weak, strong, threshold, temperature):
    total, mask = 0.0, []
    for w, s in zip(weak.tolist(), strong.tolist(), strict=True):
        powers = [math.exp(value / temperature) for value in w]
        best = max(range(len(w)), key=powers.__getitem__)
        counts = powers[best] / sum(powers) >= threshold
        mask.append(float(counts))
        if counts:
            total += math.log(sum(map(math.exp, s))) - s[best]
    return total / len(weak), mask


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_the_unlabelled_loss_equals_the_oracle(threshold, temperature):
    torch.manual_seed(0)
    weak, strong = 2 * torch.randn(2, 25, 4, dtype=torch.float64)
    weak.requires_grad_(), strong.requires_grad_()
    options = {"threshold": threshold, "temperature": temperature}
    loss, mask = unlabelled_loss(weak, strong, **options)
    expected, counted = slow_unlabelled_loss(weak, strong, threshold, temperature)
    assert loss.item() == pytest.approx(expected) and mask.tolist() == counted
    if threshold == 0.6:
        assert 0 < sum(counted) < 25
    loss.backward()
    assert weak.grad is None
    # Of the softmax minus the pseudo-label, over all images, where it counts.
    answers = F.one_hot(weak.argmax(dim=1), 4)
    gradient = (strong.softmax(dim=1) - answers) * mask[:, None] / 25
    torch.testing.assert_close(strong.grad, gradient.detach())


def test_exactly_the_threshold_counts():
    # Two or four equal logits: exactly a half, exactly a quarter.
    weak = torch.tensor([[1.0, 1.0, -200.0, -200.0], [0.0, 0.0, 0.0, 0.0]])
    strong = torch.zeros(2, 4)
    for threshold, mask in ((0.5, [1, 0]), (math.nextafter(0.25, 0), [1, 1]), (0.25, [1, 1])):
        options = {"threshold": threshold, "temperature": 1.0}
        loss, found = unlabelled_loss(weak, strong, **options)
        assert found.tolist() == mask
        # A mean over both images, whether they count or not.
        assert loss.item() == pytest.approx(math.log(4) * sum(mask) / 2)
    above = {"threshold": 0.5 + 1e-6, "temperature": 1.0}
    assert unlabelled_loss(weak, strong, **above)[0] == 0


def test_the_unlabelled_loss_falls_under_plain_gradient_steps():
    torch.manual_seed(0)
    weak, strong = 5 * torch.randn(40, 5), torch.randn(40, 5, requires_grad=True)
    values = []
    for _ in range(30):
        value, _ = unlabelled_loss(weak, strong, threshold=0.8, temperature=1.0)
        values.append(value.item())
        strong.data -= 20 * torch.autograd.grad(value, strong)[0]
    assert all(b < a for a, b in pairwise(values)) and values[-1] < 0.2 * values[0]


def test_the_labelled_stream_shuffles_all_images_anew_each_turn():
    whole = list(labelled_stream(7, 0, 70, seed=3))
    turns = [[image for image, turn in whole if turn == number] for number in range(10)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) == 10
    assert [turn for _, turn in whole] == [place // 7 for place in range(70)]
    assert list(labelled_stream(7, 0, 70, seed=4)) != whole
    assert list(labelled_stream(1, 5, 8, seed=0)) == [(0, 5), (0, 6), (0, 7)]
    assert list(labelled_stream(7, 9, 9, seed=3)) == []


@pytest.mark.parametrize("size", [1, 3, 7, 10, 64])
def test_the_labelled_stream_does_not_depend_on_where_a_call_starts(size):
    # Fewer images than a batch of 10 or 64, as many, or more.
    whole = list(labelled_stream(7, 0, 640, seed=3))
    parts = [list(labelled_stream(7, s, min(s + size, 640), seed=3)) for s in range(0, 640, size)]
    assert list(chain.from_iterable(parts)) == whole


def tiny_images(n=30, channels=3):
    random = np.random.RandomState(1)
    images = random.randint(0, 256, (n, 32, 32, channels)).astype(np.uint8)
    return ImageDataset("tiny", "train", images, random.randint(3, size=n), ("a", "b", "c"))


DATA = tiny_images()
CHOSEN = torch.tensor([3, 8, 1, 22, 17])
LABELLED = Labelled("list", CHOSEN, torch.from_numpy(DATA.labels)[CHOSEN])
OPTIONS = FixMatch(labelled=4, mu=3, threshold=0.4)


def small(seed=0):
    torch.manual_seed(seed)
    return Classifier(CifarResNet(**small_resnet(2, 10)), 3)


class Watched:
    """Views that note what was asked for and what they gave, perhaps in another precision."""

    def __init__(self, views, dtype=torch.float32):
        self.views, self.dtype, self.images, self.device = views, dtype, views.images, CPU
        self.calls, self.given = [], []

    def __call__(self, augment, draws, epoch, view, *, of):
        self.calls.append((type(augment), draws.tolist(), epoch, view, of.tolist()))
        self.given.append(self.views(augment, draws, epoch, view, of=of).to(self.dtype))
        return self.given[-1]


def images_of(calls):
    return [image for call in calls for image in call[4]]


def tiny_views(dtype=torch.float32, **options):
    return Watched(Views(DATA, "digits", seed=5, device=CPU, **options), dtype)


def sgd(network, **settings):
    optimizer = fixmatch_defaults().OPTIMIZER
    for name, value in settings.items():
        optimizer[name] = value
    return steps.sgd(network, optimizer, decay_all=False)


def probe(network):
    """Something that every weight has a part in."""
    x = torch.linspace(-1, 1, 4 * 3072).reshape(4, 3, 32, 32)
    with torch.no_grad():
        return {"accuracy": network(x.to(next(network.parameters()).dtype)).std().item()}


def train(
    folder=None, *, network=None, views=None, options=OPTIONS, die_at=None, spoil_at=None,
    per_epoch=3, compiled=False, evaluate=probe, after_step=None, **plan,
):  # fmt: skip
    """Six steps, two epochs."""
    network = small() if network is None else network
    batch = options.labelled * options.mu
    plan = Plan(
        **{
            "epochs": 0, "steps": 6, "batch_size": batch, "lr": 0.1, "schedule": "fixmatch",
            "ema": 0.9, "seed": 5,
        } | plan
    )  # fmt: skip
    make = fixmatch_step(
        tiny_views() if views is None else views, WeakChain(), RandAugmentChain(), LABELLED,
        options, seed=5, numbers=per_epoch * batch, compiled=compiled,
    )  # fmt: skip

    def disturbed(network):
        step = make(network)

        def disturbed_step(places, epoch, number):
            if number == die_at:
                raise KeyboardInterrupt
            loss, numbers = step(places, epoch, number)
            return loss * (math.nan if number == spoil_at else 1), numbers

        return disturbed_step

    if folder is not None:
        folder.mkdir(exist_ok=True)
    return fit(
        network, disturbed, sgd(network), plan, images=per_epoch * batch, device=CPU,
        folder=folder, evaluate=evaluate, after_step=after_step,
        export=exporting(folder) if folder else None,
    )  # fmt: skip


@pytest.mark.parametrize("network", [WideResNet(10, 1, 3), small()], ids=["wide", "small"])
def test_biases_and_batch_norm_do_not_decay(network):
    decaying, others = sgd(network, WEIGHT_DECAY=0.5).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.5, 0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    norms = {
        f"{name}.weight"
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    found = [
        {names[id(parameter)] for parameter in group["params"]} for group in (decaying, others)
    ]
    without = {name for name in names.values() if name.endswith("bias")} | norms
    assert found[1] == without and found[0] == set(names.values()) - without
    assert len(norms) >= 5
    for group in (decaying, others):
        assert (group["lr"], group["momentum"], group["nesterov"]) == (0.03, 0.9, True)
    assert len(steps.sgd(network, fixmatch_defaults().OPTIMIZER).param_groups) == 1


def test_the_schedule_by_hand():
    (trial,) = fixmatch_trials(settings("--opts", LIST, "slice1", NUMBER, 5), DATA)
    plan, total = trial.plan, 2**20
    assert plan.total(trial.images) == total == plan.steps and trial.images == 1024 * 64 * 7
    expected = {0: 1.0, 1: 0.9999999999991412, 2**19: 0.7730104533627370, total: 0.1950903220161283}
    for step, factor in expected.items():
        assert plan.factor(step, total) == pytest.approx(factor, abs=1e-14)
        assert factor == pytest.approx(math.cos(7 * math.pi * step / (16 * total)), abs=1e-14)


def test_stopping_early_does_not_shorten_the_schedule():
    rates, network = [], small()
    optimizer = sgd(network)

    def make(network):
        def step(places, epoch, number):
            rates.append([group["lr"] for group in optimizer.param_groups])
            return network(torch.zeros(2, 3, 32, 32)).sum(), {}

        return step

    plan = Plan(epochs=0, steps=20, stop=5, batch_size=2, lr=0.03, schedule="fixmatch")
    metrics = fit(network, make, optimizer, plan, images=4, device=CPU).metrics
    assert rates == [
        [pytest.approx(0.03 * math.cos(7 * math.pi * k / (16 * 20)))] * 2 for k in range(5)
    ]
    assert metrics["step"].tolist() == [2, 4, 5]
    # And a stop after the end changes nothing.
    assert train(steps=2, stop=9).metrics["step"].tolist() == [2]


def test_the_weight_average_by_hand():
    network = small().double()
    average = {k: v.detach().clone() for k, v in network.named_parameters()}
    first = dict(average)

    def after_step(number):
        for name, weights in network.named_parameters():
            average[name] = 0.999 * average[name] + 0.001 * weights.detach()

    views = tiny_views(torch.float64)
    trained = train(network=network, views=views, steps=3, ema=0.999, lr=0.5, after_step=after_step)
    found = dict(trained.network.named_parameters())
    for name, expected in average.items():
        torch.testing.assert_close(found[name].detach(), expected, rtol=0, atol=1e-12)
    moved = max(float((average[name] - first[name]).abs().max()) for name in average)
    assert moved > 1e-6
    buffers = dict(network.named_buffers())
    assert len(buffers) >= 21
    for name, buffer in trained.network.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_two_steps_equal_the_oracle():
    torch.manual_seed(2)
    network = WideResNet(10, 1, 3).double()
    with torch.no_grad():
        # Some confident, some not; and batch norms that differ.
        network.fc.weight *= 4
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    weights = {k: v.detach().clone().requires_grad_() for k, v in network.named_parameters()}
    views = tiny_views(torch.float64)
    options = FixMatch(labelled=4, mu=3, threshold=0.55, temperature=0.8, weight=0.5)
    make = fixmatch_step(
        views, WeakChain(), RandAugmentChain(), LABELLED, options, seed=5, numbers=24
    )
    plan = Plan(epochs=0, steps=10, stop=2, batch_size=12, lr=0.05, schedule="fixmatch", seed=2)
    trained = fit(
        network, make, sgd(network, WEIGHT_DECAY=0.05), plan, images=24, device=CPU
    )  # fmt: skip

    losses, speed = [], dict.fromkeys(weights, 0.0)
    for step in (0, 1):
        views_of_step = views.given[3 * step : 3 * step + 3]
        assert [len(view) for view in views_of_step] == [4, 12, 12]
        labels = DATA.labels[views.calls[3 * step][4]]
        # The statistics of batch norm are those of all 28 views.
        logits = by_hand(weights, torch.cat(views_of_step), 1)
        logs = logits - logits.exp().sum(dim=1, keepdim=True).log()
        loss_x = -sum(logs[i, labels[i]] for i in range(4)) / 4
        loss_u, mask = 0.0, 0
        for i in range(12):
            powers = (logits[4 + i].detach() / 0.8).exp()
            if powers.max() / powers.sum() >= 0.55:
                loss_u = loss_u - logs[16 + i, powers.argmax()] / 12
                mask += 1
        assert 2 < mask < 11
        loss = loss_x + 0.5 * loss_u
        losses.append([loss.item(), loss_x.item(), loss_u.item(), mask / 12])
        rate = 0.05 * math.cos(7 * math.pi * step / (16 * 10))
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            decays = "bn" not in name and "bias" not in name
            gradient = gradient + (0.05 if decays else 0) * weight.detach()
            speed[name] = 0.9 * speed[name] + gradient
            moved = weight.detach() - rate * (gradient + 0.9 * speed[name])
            weights[name] = moved.requires_grad_()

    columns = ["loss", "loss_labelled", "loss_unlabelled", "mask"]
    # The step computes its losses in float32.
    found = trained.metrics[columns].iloc[0].tolist()
    assert found == pytest.approx(np.mean(losses, axis=0).tolist(), rel=1e-5)
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight, weights[name], rtol=1e-5, atol=2e-7)


def test_every_image_is_visited_equally_often_each_time_with_another_view():
    views = tiny_views()
    # 10 epochs of 3 · 12 numbers, for 30 images: 12 times each.
    train(views=views, steps=30)
    labelled, weak, strong = (views.calls[part::3] for part in range(3))
    for calls in (weak, strong):
        visits = Counter(images_of(calls))
        assert visits == Counter({image: 12 for image in range(30)})
        draws = [draw for call in calls for draw in call[1]]
        assert len(set(draws)) == 360 and [d % 30 for d in draws] == images_of(calls)
    # Not in the order of the list, and not in the same order again.
    order = images_of(weak)
    assert order[:36] != sorted(order[:36]) and order[:180] != order[180:]
    # 30 steps of 4, for 5 images.
    visits = Counter(images_of(labelled))
    assert visits == Counter({image: 24 for image in CHOSEN.tolist()})
    draws = [draw for call in labelled for draw in call[1]]
    assert len(set(draws)) == 120
    assert [d % 30 for d in draws] == images_of(labelled)
    # A view of the same image, where it is seen again, looks otherwise.
    shown = [
        row
        for call, given in zip(weak, views.given[1::3], strict=True)
        for image, row in zip(call[4], given, strict=True)
        if image == 7
    ]
    assert len({row.numpy().tobytes() for row in shown}) == 12


def test_weak_and_strong_views_are_drawn_independently():
    views = tiny_views()
    train(views=views, steps=3)
    for labelled, weak, strong in zip(*(views.calls[part::3] for part in range(3)), strict=True):
        assert [call[0] for call in (labelled, weak, strong)] == [
            WeakChain, WeakChain, RandAugmentChain,
        ]  # fmt: skip
        assert weak[4] == strong[4] and weak[1] == strong[1]
        assert len({labelled[3], weak[3], strong[3]}) == 3
    places, options = torch.arange(4000), {"seed": 5, "epoch": 0}
    draws = [
        augment.draw(places, 32, 32, view=view, **options)
        for augment, view in (
            (WeakChain(), fixmatch.LABELLED),
            (WeakChain(), fixmatch.WEAK),
            (RandAugmentChain(), fixmatch.STRONG),
        )
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        same = (draws[a].flip == draws[b].flip).float().mean()
        assert same == pytest.approx(0.5, abs=0.03)
        both = torch.stack([draws[a].shift[:, 0], draws[b].shift[:, 0]]).float()
        assert torch.corrcoef(both)[0, 1].abs() < 0.05


def test_without_the_unlabelled_loss_it_is_supervised_training_on_weak_views():
    views, network = tiny_views(), small()
    found = train(views=views, network=network, options=FixMatch(4, 3, weight=0.0), lr=0.1)
    # One call a step, and no other image than the labelled ones.
    assert len(views.calls) == 6 and all(call[0] is WeakChain for call in views.calls)
    assert set(images_of(views.calls)) == set(CHOSEN.tolist())
    assert set(found.metrics) == {
        "epoch", "step", "lr", "loss", "loss_labelled", "images_per_second", "accuracy",
    }  # fmt: skip

    other, plain = small(), Views(DATA, "digits", seed=5, device=CPU)
    optimizer = sgd(other)
    for step in range(6):
        rows, turns = map(
            torch.tensor, zip(*labelled_stream(5, 4 * step, 4 * step + 4, seed=5), strict=True)
        )
        images = CHOSEN[rows]
        x = plain(WeakChain(), images + 30 * turns, 0, 0, of=images)
        loss = F.cross_entropy(other(x), LABELLED.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * math.cos(7 * math.pi * step / (16 * 6))
        optimizer.step()
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_it_learns_from_images_without_labels():
    # Stripes, one kind a class: two labels each, and what the others look like.
    stripes = np.zeros((60, 32, 32, 1), np.uint8)
    labels = np.arange(60) % 3
    for image, label in zip(stripes, labels, strict=True):
        image[:: label + 2] = 255
    data = ImageDataset("stripes", "train", stripes, labels, ("a", "b", "c"))
    chosen = torch.arange(6)
    labelled = Labelled("list", chosen, torch.from_numpy(labels)[chosen])
    views = Views(data, "digits", seed=0, device=CPU)
    network = small()
    make = fixmatch_step(
        views, WeakChain(), RandAugmentChain(), labelled, FixMatch(6, 3), seed=0, numbers=180
    )
    plan = Plan(epochs=10, batch_size=18, lr=0.1, schedule="fixmatch")
    metrics = fit(network, make, sgd(network), plan, images=180, device=CPU).metrics
    assert metrics["mask"].iloc[-1] > metrics["mask"][0] + 0.2
    x = views.standard(torch.arange(60))
    assert (network.eval()(x).argmax(dim=1).numpy() == labels).mean() > 0.9


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trained = train(folder)
    return folder, trained


NAMES = ("checkpoint.pth", "checkpoint.pth.tar", "model_best.pth.tar")


@pytest.mark.parametrize("save_every", [0, 2])
@pytest.mark.parametrize("die_at", range(6))
def test_killed_at_any_step_and_resumed(whole, tmp_path, die_at, save_every):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, die_at=die_at, save_every=save_every)
    views = tiny_views()
    rest = train(tmp_path, views=views, save_every=save_every)
    done = len(views.given) // 3
    assert done == 6 - (3 * (die_at // 3) if not save_every else (0, 0, 2, 3, 4, 4)[die_at])
    for name in NAMES:
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
        return loop_replacing(path)

    loop_replacing = loop.replacing
    for module in (loop, fixmatch):
        monkeypatch.setattr(module, "replacing", killed)
    try:
        train(tmp_path)
        # The best of the second epoch was no better.
        assert len(written) <= file
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    train(tmp_path)
    for name in NAMES:
        same(torch.load(tmp_path / name), torch.load(whole[0] / name), name)


def test_the_files_of_fixmatch_pytorch(tmp_path):
    accuracies, evaluated = [30.0, 10.0, 50.0, 20.0], []

    def evaluate(network):
        evaluated.append({k: v.clone() for k, v in network.state_dict().items()})
        assert not network.training
        return {"accuracy": accuracies[len(evaluated) - 1]}

    network = small()
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
    assert last["scheduler"] == {"last_epoch": 7, "_last_lr": [pytest.approx(rate)]}
    # Without an average the weights are tested, and the place of the average stays empty.
    train(tmp_path / "plain", ema=0.0, steps=3)
    plain = torch.load(tmp_path / "plain" / "model_best.pth.tar")
    assert set(plain) == LAYOUT and plain["ema_state_dict"] is None


def test_the_names_of_the_released_network(tmp_path):
    expected = json.loads((Path(__file__).parent / "state_dicts.json").read_text())["wrn_28_2"]
    weights = WideResNet(28, 2).state_dict()
    content = {"model": weights, "ema_model": weights, "optimizer": {}, "epoch": 1, "step": 2}
    row = {"accuracy": 1.0, "lr": 0.1}
    exporting(tmp_path)(content | {"metrics": [row]}, row)
    for name in NAMES[1:]:
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
    for name in NAMES:
        same(torch.load(tmp_path / name), torch.load(whole[0] / name), name)


@pytest.mark.parametrize("channels", [1, 3])
def test_training_on_pil_views_is_close_to_that_on_batched_ones(channels):
    data = tiny_images(channels=channels)
    results = []
    for backend in ("batched", "pil"):
        views = Watched(Views(data, "digits", seed=5, device=CPU, backend=backend))
        trained = train(views=views)
        results.append((torch.cat(views.given), trained.metrics["loss"].tolist()))
    (fast, fast_losses), (slow, slow_losses) = results
    if channels == 1:
        # On grey levels the views are the same, but for the order of float32 operations.
        torch.testing.assert_close(fast, slow)
    # Else they differ by a level here and there.
    assert (fast - slow).abs().mean() < 1 / 255
    assert fast_losses == pytest.approx(slow_losses, rel=0.02)


def test_bfloat16_trains():
    losses = [train(precision=p, steps=1).metrics["loss"][0] for p in ("bfloat16", "float32")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_compiled_network_trains_alike(monkeypatch):
    # Without the last stage, which takes a compiler and a minute: that changes no number much.
    whole = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: whole(m, backend="aot_eager"))
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, 4), torch.nn.BatchNorm2d(4), torch.nn.Flatten(),
        torch.nn.Linear(256, 3),
    )  # fmt: skip
    plain, compiled = (
        train(network=copy.deepcopy(network), compiled=compiled) for compiled in (False, True)
    )
    assert list(compiled.network.state_dict()) == list(plain.network.state_dict())
    for name, weights in plain.network.state_dict().items():
        torch.testing.assert_close(compiled.network.state_dict()[name], weights)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


def test_parts_of_two_processes_are_the_whole(monkeypatch):
    def asked(world, rank):
        monkeypatch.setattr(distributed, "world_size", lambda: world)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        views = tiny_views()
        make = fixmatch_step(
            views, WeakChain(), RandAugmentChain(), LABELLED, OPTIONS, seed=5, numbers=24
        )
        step = make(small())
        for number in range(4):
            places = torch.arange(12).chunk(world)[rank]
            step(places, number // 2, number)
        return views.calls

    one, first, second = asked(1, 0), asked(2, 0), asked(2, 1)
    for whole, a, b in zip(one, first, second, strict=True):
        assert (a[1] + b[1], a[4] + b[4]) == (whole[1], whole[4])
    FixMatch(labelled=4).check_processes()
    with pytest.raises(InputError, match="BATCH_SIZE is 3; choose a multiple of 2, the processes"):
        FixMatch(labelled=3).check_processes()


WORKER = """
import json, sys
sys.path.insert(0, {tests!r})
import torch
from torch import distributed as dist
from test_fixmatch import CPU, outcome
from usl import distributed
with distributed.processes(CPU):
    results = []
    for dtype in (torch.float64, torch.float32):
        result, labelled = outcome(dtype), [None, None]
        dist.all_gather_object(labelled, result["labelled"])
        results.append(result | {{"labelled": labelled}})
    if distributed.is_first():
        print("RESULT " + json.dumps(results))
"""


def outcome(dtype):
    """One epoch of three steps: metrics, the weight average, labelled images by step."""
    views = tiny_views(dtype)
    trained = train(network=small().to(dtype), views=views, steps=3)
    weights = trained.network.state_dict()
    return {
        "metrics": {c: trained.metrics[c].tolist() for c in ("loss", "mask", "accuracy")},
        "weights": {k: v.double().flatten().tolist() for k, v in weights.items()},
        "labelled": [call[4] for call in views.calls[::3]],
    }


def test_two_processes_nearly_equal_one(tmp_path):
    code = WORKER.format(tests=str(ROOT / "tests"))
    both = in_processes(tmp_path / "worker.py", code, 2)
    # Batch norm and gradients add up over processes in another order; steps on few images, with a
    # large learning rate, enlarge that. Measured: 1e-14 in float64, whose losses are rounded to
    # float32; 2e-4 in the weights and 3e-5 in the loss in float32.
    for two, dtype, number, weight in zip(
        both,
        (torch.float64, torch.float32),
        (1e-6, 1e-3),
        (1e-11, 2e-3),
        strict=True,
    ):
        one = outcome(dtype)
        # Each has its half of the labelled images that one process sees.
        assert [a + b for a, b in zip(*two["labelled"], strict=True)] == one["labelled"]
        for name, values in one["metrics"].items():
            assert two["metrics"][name] == pytest.approx(values, rel=number), name
        for name, values in one["weights"].items():
            assert two["weights"][name] == pytest.approx(values, rel=0, abs=weight), name


def settings(*argv):
    words = [str(a).replace("configs/", f"{STAGE}/configs/") for a in argv]
    return parse(fixmatch_defaults(), words, script=str(STAGE / "train.py"))


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


# What method.md says of FixMatch.
METHOD = {
    "MODEL.ARCH": "WideResNet", "MODEL.DEPTH": 28, "DATALOADER.BATCH_SIZE": 64, "FIXMATCH.MU": 7,
    "FIXMATCH.THRESHOLD": 0.95, "FIXMATCH.TEMPERATURE": 1.0, "FIXMATCH.LAMBDA_U": 1.0,
    "OPTIMIZER.LR": 0.03, "OPTIMIZER.MOMENTUM": 0.9, "OPTIMIZER.NESTEROV": True,
    "SCHEDULE": "fixmatch", "STEPS": 2**20, "EMA_DECAY": 0.999, "FIXMATCH.EVAL_STEPS": 1024,
    "FIXMATCH.EARLY_STOP": 0,
}  # fmt: skip
EXPERIMENTS = {
    "cifar10_usl": (2, 5e-4, "cifar10_usl_seed{seed}", [1, 2, 5]),
    "cifar10_usl-t": (2, 5e-4, "cifar10_usl-t", [1, 2, 5]),
    "cifar10_random": (2, 5e-4, "cifar10_random_seed{seed}", [1, 2, 5]),
    "cifar100_usl": (8, 1e-3, "cifar100_usl", [5]),
    "cifar100_usl-t": (8, 1e-3, "cifar100_usl-t", [5]),
    "cifar100_random": (8, 1e-3, "cifar100_random", [5]),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_experiments_are_those_of_the_method(name):
    cfg = settings("--cfg", f"configs/{name}_fixmatch.yaml")
    assert {key: value(cfg, key) for key in METHOD} == METHOD
    width, decay, picks, seeds = EXPERIMENTS[name]
    dataset = name.partition("_")[0]
    assert (dataset, f"FixMatch-{dataset}") == (cfg.DATASET.NAME, cfg.DATASET.TRANSFORM_NAME)
    assert (width, decay) == (cfg.MODEL.WIDTH, cfg.OPTIMIZER.WEIGHT_DECAY)
    assert seeds == cfg.FIXMATCH.SEEDS
    released = ROOT / "selective_labeling" / "released"
    assert str(released / f"{picks}.csv") == cfg.FIXMATCH.LABELED_INDICES_PATH
    for seed in seeds:
        assert (released / f"{picks}.csv".replace("{seed}", str(seed))).exists()


def test_every_config_parses_and_states_its_command():
    paths = sorted((STAGE / "configs").glob("*.yaml"))
    assert {path.stem.removesuffix("_fixmatch") for path in paths} >= {
        *EXPERIMENTS, "digits_usl", "digits_random", "fashion-mnist_usl", "fashion-mnist_random",
    }  # fmt: skip
    for path in paths:
        assert path.stem == settings("--cfg", f"configs/{path.name}").RUN_NAME
        assert f"\n#   python train.py --cfg configs/{path.name}\n" in path.read_text()
    with pytest.raises(InputError, match="--opts: EPOCHS is a setting of another stage"):
        settings("--opts", "EPOCHS", 3)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """CIFAR-10 files with 200 made-up training images, and a small SimCLR encoder."""
    root = make_cifar(tmp_path_factory.mktemp("cifar"))
    torch.manual_seed(0)
    save_encoder(root / "encoder.pth", new_network("SmallResNet", 2, 10, cld=False), cld=False)
    return root


SHORT = (
    "DATALOADER.BATCH_SIZE", 4, "FIXMATCH.MU", 2, "STEPS", 4, "FIXMATCH.EVAL_STEPS", 2,
    "FIXMATCH.SEEDS", "[1]", NUMBER, 20, LIST, "slice{seed}",
)  # fmt: skip
WIDE = ("MODEL.DEPTH", 10, "MODEL.WIDTH", 1)


def short(cifar, run, *options):
    config = ("--cfg", "configs/cifar10_usl_fixmatch.yaml", "--opts", "DATASET.ROOT_DIR", cifar)
    return (*config, "RUN_DIR", run, *WIDE, *SHORT, *options)


def run_script(*argv):
    """As a person does: a new process, from the stage's folder."""
    command = [sys.executable, "train.py", *map(str, argv)]
    return subprocess.run(command, cwd=STAGE, capture_output=True, text=True)


@pytest.fixture
def script(monkeypatch):
    """Call the script's main(argv) in this process, from its folder."""

    def call(*argv):
        monkeypatch.chdir(STAGE)
        runpy.run_path("train.py")["main"]([str(a) for a in argv])

    return call


def rows_of(run):
    with (run / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_the_mean_of_the_last_tests():
    metrics = pd.DataFrame({"accuracy": [90.0, 80, *range(20)]})
    result = Outcome(1, LABELLED, metrics, np.zeros(3), 1.0, last=20)
    assert result.recent == pytest.approx(9.5) and result.accuracy == 19
    few = Outcome(1, LABELLED, metrics[:3], np.zeros(3), 1.0, last=20)
    assert few.recent == pytest.approx(170 / 3)


def test_the_script_on_files_in_cifars_format(cifar, script, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("FIXMATCH.SEEDS", "[1, 2]", "STEPS", 5)
    done = run_script(*short(cifar, run, *more))
    assert done.returncode == 0, done.stderr
    rows, lines = rows_of(run), done.stdout.splitlines()
    assert len(rows) == 2
    for row, seed in zip(rows, "12", strict=True):
        assert list(row) == COLUMNS
        assert [row[c] for c in COLUMNS[:5]] == [
            "cifar10", "stratified", "20", f"slice{seed}", seed,
        ]  # fmt: skip
        folder = run / f"seed{seed}"
        metrics = pd.read_csv(folder / "metrics.csv")
        assert metrics["step"].tolist() == [2, 4, 5]
        assert {"loss", "loss_labelled", "loss_unlabelled", "mask", "lr"} <= set(metrics)
        accuracy, mean = metrics["accuracy"].iloc[-1], metrics["accuracy"].mean()
        assert float(row["accuracy"]) == pytest.approx(accuracy)
        assert float(row["last20"]) == pytest.approx(mean, abs=1e-4)
        assert float(row["time"]) > 0
        start = f"seed {seed}, 20 labels of slice{seed}: accuracy {accuracy:.2f}"
        assert lines[int(seed) - 1].startswith(f"{start} (mean of the last tests {mean:.2f}) in ")
        content = torch.load(folder / "checkpoint.pth.tar")
        assert set(content) == LAYOUT and content["epoch"] == 3
        WideResNet(10, 1, 10).load_state_dict(content["ema_state_dict"])
        assert torch.load(folder / "model_best.pth.tar")["acc"] == metrics["accuracy"].max()
    means = {c: mean_spread([float(row[c]) for row in rows]) for c in ("accuracy", "last20")}
    assert "±" in means["accuracy"]
    assert lines[-1] == f"accuracy: {means['accuracy']} over 2 seeds"
    assert lines[-2] == f"mean of at most 20 last tests: {means['last20']} over 2 seeds"
    assert [line.split()[0] for line in lines[-12:-2]] == [f"class-{i}" for i in range(10)]
    report = (run / "report.html").read_text()
    for text in ("mean of at most 20 last tests", means["last20"], "mask", "class-9", "seed 2"):
        assert text in report
    assert re.search(r"<dt>Steps</dt>\s*<dd>5</dd>", report) and "Epochs" not in report
    assert "training goes on" not in done.stderr

    # What is finished is not trained again, and not gone on with under other settings.
    script(*short(cifar, run, *more))
    again = capsys.readouterr()
    assert again.err.count("training goes on from step 5") == 2
    assert again.out.splitlines()[-2:] == lines[-2:] and rows_of(run) == rows
    for options, message in (
        (("MODEL.DEPTH", 16), "is of other settings: MODEL.DEPTH was 10 and is 16"),
        ((LIST, "slice9"), "is of other settings: labelled was "),
        (("STEPS", 6), "is of other settings: STEPS was 5 and is 6"),
    ):
        with pytest.raises(InputError, match=message):
            script(*short(cifar, run, *more, *options))


def test_answers_of_a_person_and_a_pretrained_network(cifar, script, tmp_path, capsys):
    images = open_dataset("cifar10", cifar)
    path = tmp_path / "mine.csv"
    path.write_text("Index,Label\n" + "".join(f"{i},class-{i % 4}\n" for i in range(9, 21)))
    options = (
        LIST, path, "MODEL.ARCH", "SmallResNet", "MODEL.PRETRAIN_PATH", cifar / "encoder.pth",
    )  # fmt: skip
    cfg = settings(*short(cifar, tmp_path / "run", *options))
    (trial,) = fixmatch_trials(cfg, images)
    assert trial.labelled.indices.tolist() == list(range(9, 21))
    assert trial.labelled.labels.tolist() == [i % 4 for i in range(9, 21)]
    # It starts with the encoder's weights and a linear layer of its own, anew for each seed.
    build = fixmatch_network(cfg.MODEL, 10)
    network, expected = build(), torch.load(cifar / "encoder.pth")
    for name, weights in network.backbone.state_dict().items():
        assert torch.equal(weights, expected[f"backbone.{name}"]), name
        weights.zero_()
    assert build().backbone.conv1.weight.any() and network.linear.weight.shape == (10, 64)

    script(*short(cifar, tmp_path / "run", *options))
    out = capsys.readouterr()
    (row,) = rows_of(tmp_path / "run")
    assert (row["list"], row["selector"], row["budget"]) == (str(path), "mine", "12")
    assert re.fullmatch(r"accuracy: \d+\.\d\d", out.out.splitlines()[-1])
    # Six classes have no label: said, and training goes on.
    assert f"{path}: no image is labelled class-4, class-5, class-6" in out.err
    weights = torch.load(tmp_path / "run" / "seed1" / "checkpoint.pth.tar")["state_dict"]
    assert set(weights) == set(network.state_dict())


def test_the_sources_of_labels_with_skip_save(cifar, script, tmp_path, capsys):
    np.save(tmp_path / "picks_1.npy", np.array([5, 150, 3]))
    options = ("SKIP_SAVE", True, "STEPS", 2, LIST, tmp_path / "picks_{seed}.npy")
    script(*short(cifar, tmp_path / "run", *options, "FIXMATCH.LAMBDA_U", 0))
    # Three labels, fewer than the batch of four.
    out = capsys.readouterr().out
    assert out.startswith(f"seed 1, 3 labels of {tmp_path / 'picks_1.npy'}: accuracy ")
    assert not (tmp_path / "run").exists()


def test_a_network_from_scratch_by_its_name():
    for options, kind in (
        (("MODEL.ARCH", "ResNet18"), (512, 64)),
        (("MODEL.ARCH", "SmallResNet", "MODEL.DEPTH", 10, "MODEL.WIDTH", 2), (64, 2)),
    ):
        network = fixmatch_network(settings("--opts", *options).MODEL, 7)()
        assert network.linear.weight.shape == (7, kind[0])
        assert len(network.backbone.conv1.weight) == kind[1]
    cfg = settings("--opts", "MODEL.WIDTH", 8, "MODEL.DEPTH", 10).MODEL
    assert fixmatch_network(cfg, 100)().fc.weight.shape == (100, 512)


SMALL = ("MODEL.ARCH", "SmallResNet")
BAD = {
    (LIST, ""): "FIXMATCH.LABELED_INDICES_PATH is empty; give a .npy or .csv of labelled images",
    (LIST, "slice"): "there is no list of labelled images",
    (LIST, "x.csv"): "there is no list of labelled images (FIXMATCH.LABELED_INDICES_PATH)",
    (LIST, "released/x.csv"): "or choose one of those there: cifar100_random",
    (LIST, "released/cifar10_usl-t.csv"): "and cifar10 has the images 0 to 199; give a list of",
    (LIST, "{range}"): "has the index -1, 200, and cifar10 has the images 0 to 199",
    (LIST, "{twice}"): "has the index 3 more than once; keep each once",
    (LIST, "{class}"): "line 2: the label '10' is no class; give 0 to 9 or a name",
    (LIST, "{nothing}"): "lists no image; give at least one index",
    (NUMBER, 201): "a budget of 201 picks from 200 images",
    ("FIXMATCH.SEEDS", "[]"): "FIXMATCH.SEEDS is empty; give at least one seed",
    ("FIXMATCH.SEEDS", "[1, 1]"): "FIXMATCH.SEEDS has a seed twice",
    ("FIXMATCH.THRESHOLD", 1.01): "FIXMATCH.THRESHOLD is 1.01; choose 0 to 1",
    ("FIXMATCH.THRESHOLD", -0.1): "FIXMATCH.THRESHOLD is -0.1",
    ("FIXMATCH.THRESHOLD", "nan"): "FIXMATCH.THRESHOLD is nan",
    ("FIXMATCH.TEMPERATURE", 0): "FIXMATCH.TEMPERATURE is 0.0; choose above 0",
    ("FIXMATCH.TEMPERATURE", "nan"): "FIXMATCH.TEMPERATURE is nan",
    ("FIXMATCH.LAMBDA_U", -1): "FIXMATCH.LAMBDA_U is -1.0; choose 0 or more",
    ("FIXMATCH.LAMBDA_U", "nan"): "FIXMATCH.LAMBDA_U is nan",
    ("FIXMATCH.LAMBDA_U", "inf"): "FIXMATCH.LAMBDA_U is inf",
    ("FIXMATCH.MU", 0): "choose at least 1 for DATALOADER.BATCH_SIZE and FIXMATCH.MU",
    ("DATALOADER.BATCH_SIZE", 0): "choose at least 1 for DATALOADER.BATCH_SIZE and FIXMATCH.MU",
    ("FIXMATCH.EVAL_STEPS", 0): "FIXMATCH.EVAL_STEPS 0; choose at least 1",
    ("FIXMATCH.EARLY_STOP", -1): "FIXMATCH.EARLY_STOP is -1; choose 0, for none, or more",
    ("STEPS", 0): "STEPS is 0 and FIXMATCH.EVAL_STEPS 2; choose at least 1",
    ("STEPS", -3): "STEPS is -3",
    ("SCHEDULE", "zigzag"): "unknown SCHEDULE 'zigzag'; choose one of cosine, fixmatch, constant",
    ("PRECISION", "int4"): "unknown precision 'int4'",
    ("EMA_DECAY", 1): "an EMA decay of 1.0; choose 0 to below 1",
    ("RESUME", "maybe"): "RESUME is 'maybe'; choose auto or none",
    ("OPTIMIZER.LR", 0): "OPTIMIZER.LR is 0.0; choose a positive number",
    ("OPTIMIZER.MOMENTUM", 0): "OPTIMIZER.NESTEROV needs a MOMENTUM",
    ("OPTIMIZER.WEIGHT_DECAY", "nan"): "OPTIMIZER.WEIGHT_DECAY is nan; choose 0 or more",
    ("AUGMENT.FLIP", 2): "the probability flip is 2.0; choose 0 to 1",
    ("AUGMENT.BACKEND", "gimp"): "unknown AUGMENT.BACKEND 'gimp'",
    ("DATASET.TRANSFORM_NAME", "x"): "unknown DATASET.TRANSFORM_NAME 'x'",
    ("DATASET.NAME", "mnist"): "unknown DATASET.NAME 'mnist'",
    ("MODEL.ARCH", "AlexNet"): "unknown MODEL.ARCH 'AlexNet'; choose one of WideResNet, ResNet18",
    ("MODEL.DEPTH", 12): "MODEL.DEPTH is 12; choose 10, 16, 28 or another 4 + 6 · blocks",
    ("MODEL.WIDTH", 0): "MODEL.WIDTH is 0; choose at least 1",
    (*SMALL, "MODEL.DEPTH", 28): "MODEL.DEPTH is 28; choose 10, 18, 26 or another 2 + 8 · blocks",
    (*SMALL, "MODEL.WIDTH", 0): "MODEL.WIDTH is 0; choose at least 1",
    ("MODEL.PRETRAIN_PATH", "{encoder}"): "MODEL.PRETRAIN_PATH is set, and no WideResNet is pre",
    (*SMALL, "MODEL.PRETRAIN_PATH", "x.pth"): "there is no checkpoint (MODEL.PRETRAIN_PATH)",
    (*SMALL, "MODEL.PRETRAIN_PATH", "{other}"): "other.pth is of another network; missing: conv1.",
    ("MODEL.ARCH", "ResNet18", "MODEL.PRETRAIN_PATH", "{encoder}"): "is of another network",
    ("DEVICE", "abacus"): "DEVICE abacus is not on this machine",
    ("FIXMATCH.MU", 1, "DATALOADER.BATCH_SIZE", 1): "DATALOADER.BATCH_SIZE is 1; choose 2 to",
}


@pytest.mark.parametrize("options", BAD, ids=lambda options: " ".join(map(str, options)))
def test_bad_settings(cifar, script, tmp_path, options):
    paths = {"encoder": cifar / "encoder.pth", "other": tmp_path / "other.pth"}
    torch.save({"model": {"fc.weight": torch.zeros(3, 3)}}, paths["other"])
    lists = {
        "range": "Index\n5\n-1\n200\n",
        "twice": "Index\n3\n4\n3\n",
        "class": "Index,Label\n3,10\n",
        "nothing": "Index\n",
    }
    for name, text in lists.items():
        paths[name] = tmp_path / f"{name}.csv"
        paths[name].write_text(text)
    given = [str(option) for option in options]
    given = [str(paths[g[1:-1]]) if g[1:-1] in paths and g[0] == "{" else g for g in given]
    with pytest.raises(InputError) as error:
        script(*short(cifar, tmp_path / "run", *given))
    assert BAD[options] in str(error.value) and "\n" not in str(error.value)
    # Nothing is written before all is known to be possible.
    assert not (tmp_path / "run").exists()


def test_a_batch_that_cannot_be_split_over_processes(cifar, script, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(InputError, match="BATCH_SIZE is 4; choose a multiple of 3, the processes"):
        script(*short(cifar, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_training_that_diverges_says_so(cifar, script, tmp_path):
    options = ("OPTIMIZER.LR", 1e30, "FIXMATCH.EVAL_STEPS", 4)
    with pytest.raises(InputError, match="the loss is nan before step 4; nothing was saved yet; l"):
        script(*short(cifar, tmp_path / "run", *options))
