"""FixMatch: the loss, its batches, the step, the views that it asks for."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import CPU, preprocess
from oracles.networks import wide_resnet_logits
from torch.nn import functional as F
from toys.fixmatch import (
    CHOSEN,
    DATA,
    LABELLED,
    batches_of,
    images_of,
    sgd,
    small,
    tiny_views,
    train,
)

from usl import InputError
from usl.augment.randaugment import RandAugmentTransform, WeakTransform
from usl.augment.rng import Key
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.lists.read import Labelled
from usl.models.wideresnet import WideResNet
from usl.training import fixmatch
from usl.training.fixmatch import Batches, FixMatch, fixmatch_step, repeats, unlabelled_loss
from usl.training.loop import Plan, fit


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


def test_a_pass_visits_each_row_at_most_once_in_an_order_of_its_own():
    batches = Batches(11, 4, seed=3)
    seen = [batches(number) for number in range(8)]
    # Two whole batches a pass; what is left of it is dropped.
    assert [turn for _, turn in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    passes = [torch.cat([seen[i][0], seen[i + 1][0]]).tolist() for i in range(0, 8, 2)]
    assert all(len(set(rows)) == 8 and set(rows) <= set(range(11)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 4
    # Whatever was asked for before.
    for number in (5, 0, 7, 2):
        assert torch.equal(Batches(11, 4, seed=3)(number)[0], seen[number][0])
    assert not torch.equal(Batches(11, 4, seed=4)(0)[0], seen[0][0])


@pytest.mark.parametrize(
    ("count", "batch", "steps", "expected"),
    [(40, 64, 1024, 1639), (64, 64, 1024, 1), (250, 64, 1024, 1), (4, 64, 1, 16), (3, 4, 1, 2)],
)
def test_how_often_a_list_is_repeated(count, batch, steps, expected):
    # ⌈64 · 1024 / B⌉ where the list is smaller than a batch: method of the original's loader.
    assert repeats(count, batch, steps) == expected


def test_stopping_early_does_not_shorten_the_schedule():
    rates, network = [], small()
    optimizer = sgd(network)

    def make(network):
        def step(_, epoch, number):
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
    make = fixmatch_step(batches_of(views, options, steps=2))
    plan = Plan(epochs=0, steps=10, stop=2, batch_size=12, lr=0.05, schedule="fixmatch", seed=2)
    trained = fit(
        network, make, sgd(network, WEIGHT_DECAY=0.05), plan, images=24, device=CPU
    )  # fmt: skip

    losses, speed = [], dict.fromkeys(weights, 0.0)
    for step in (0, 1):
        views_of_step = views.given[3 * step : 3 * step + 3]
        assert [len(view) for view in views_of_step] == [4, 12, 12]
        labels = DATA.labels[views.calls[3 * step][1]]
        # The statistics of batch norm are those of all 28 views.
        logits = wide_resnet_logits(weights, torch.cat(views_of_step), 1)
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


def test_every_image_comes_once_in_a_pass_each_time_with_another_view():
    views = tiny_views()
    # 15 passes of 2 steps over 30 images, 12 at a time, and 30 over 5 labelled ones, 4 at a time.
    train(views=views, steps=30)
    labelled, weak, strong = (views.calls[part::3] for part in range(3))
    for calls, size in ((weak, 2), (strong, 2), (labelled, 1)):
        seen = images_of(calls)
        step = 12 if size == 2 else 4
        for start in range(0, len(seen), size * step):
            assert len(set(seen[start : start + size * step])) == size * step
        # No view comes twice.
        keys = [(image, call[3], call[4]) for call in calls for image in call[2]]
        assert len(set(keys)) == len(keys)
        assert [image % 30 for image, _, _ in keys] == seen
    # Not in the order of the list, and not in the same order again.
    order = images_of(weak)
    assert order[:24] != sorted(order[:24]) and order[:24] != order[24:48]
    # What is dropped of a pass is another part each time.
    assert set(order) == set(range(30)) and set(images_of(labelled)) == set(CHOSEN.tolist())
    # A view of the same image, where it is seen again, looks otherwise.
    shown = [
        row
        for call, given in zip(weak, views.given[1::3], strict=True)
        for image, row in zip(call[1], given, strict=True)
        if image == 7
    ]
    assert len({row.numpy().tobytes() for row in shown}) == len(shown) > 8


def test_few_labels_are_repeated_and_the_repeated_list_is_shuffled():
    views = tiny_views()
    two = Labelled("list", CHOSEN[:2], LABELLED.labels[:2])
    options = FixMatch(labelled=4, mu=3)
    make = fixmatch_step(batches_of(views, options, two, steps=5))
    step = make(small())
    for number in range(10):
        step(torch.arange(12), 0, number)
    labelled = views.calls[::3]
    # ⌈4 · 5 / 2⌉ = 10 copies, so a pass has 5 steps, in which each image comes ten times.
    for start in (0, 5):
        counts = Counter(images_of(labelled[start : start + 5]))
        assert counts == {int(image): 10 for image in CHOSEN[:2]}
    shares = [Counter(call[1])[int(CHOSEN[0])] for call in labelled]
    assert len(set(shares)) > 1  # not two and two in every batch
    keys = [(image, call[3]) for call in labelled for image in call[2]]
    assert len(set(keys)) == 40


def test_more_unlabelled_images_than_there_are():
    options = FixMatch(labelled=11, mu=3)
    with pytest.raises(InputError, match="a step takes 33 unlabelled images, .* there are 30"):
        batches_of(tiny_views(), options, steps=2)


def test_weak_and_strong_views_are_drawn_independently():
    views = tiny_views()
    train(views=views, steps=3)
    for labelled, weak, strong in zip(*(views.calls[part::3] for part in range(3)), strict=True):
        assert [call[0] for call in (labelled, weak, strong)] == [
            WeakTransform, WeakTransform, RandAugmentTransform,
        ]  # fmt: skip
        assert weak[1] == strong[1] and weak[2] == strong[2]
        assert len({labelled[4], weak[4], strong[4]}) == 3
    params = [
        augment.sample(Key(torch.arange(4000), 5, view=view), (32, 32))
        for augment, view in (
            (WeakTransform(), fixmatch.LABELLED),
            (WeakTransform(), fixmatch.WEAK),
            (RandAugmentTransform(), fixmatch.STRONG),
        )
    ]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        same = (params[a].flip == params[b].flip).float().mean()
        assert same == pytest.approx(0.5, abs=0.03)
        both = torch.stack([params[a].shift[:, 0], params[b].shift[:, 0]]).float()
        assert torch.corrcoef(both)[0, 1].abs() < 0.05


def test_without_the_unlabelled_loss_it_is_supervised_training_on_weak_views():
    views, network = tiny_views(), small()
    found = train(
        views=views, network=network, options=FixMatch(labelled=4, mu=3, weight=0.0), lr=0.1
    )
    # One call a step, and no other image than the labelled ones.
    assert len(views.calls) == 6 and all(call[0] is WeakTransform for call in views.calls)
    assert set(images_of(views.calls)) == set(CHOSEN.tolist())
    assert set(found.metrics) == {
        "epoch", "step", "lr", "loss", "loss_labelled", "images_per_second", "accuracy",
        "accuracy/raw",
    }  # fmt: skip

    other, plain = small(), Views(DATA, preprocess(DATA), device=CPU)
    optimizer, batches = sgd(other), Batches(5, 4, seed=5)
    for step in range(6):
        rows, turn = batches(step)
        images = CHOSEN[rows]
        x = plain(WeakTransform(), images, Key(images, 5, turn))
        loss = F.cross_entropy(other(x), LABELLED.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * math.cos(7 * math.pi * step / (16 * 6))
        optimizer.step()
    for (name, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_it_learns_from_images_without_labels():
    # Stripes, one kind a class: two labels each, and what the others look like.
    stripes = np.zeros((60, 32, 32, 1), np.uint8)
    labels = np.arange(60) % 3
    for image, label in zip(stripes, labels, strict=True):
        image[:: label + 2] = 255
    data = ImageDataset("stripes", "train", stripes, labels, ("a", "b", "c"))
    chosen = torch.arange(6)
    labelled = Labelled("list", chosen, torch.from_numpy(labels)[chosen])
    views = Views(data, preprocess(data), device=CPU)
    network = small()
    options = FixMatch(labelled=6, mu=3)
    make = fixmatch_step(batches_of(views, options, labelled, steps=10, seed=0))
    plan = Plan(epochs=14, batch_size=18, lr=0.03, schedule="fixmatch")
    metrics = fit(network, make, sgd(network), plan, images=180, device=CPU).metrics
    assert metrics["mask"].iloc[-1] > metrics["mask"][0] + 0.2
    x = views.standard(torch.arange(60))
    assert (network.eval()(x).argmax(dim=1).numpy() == labels).mean() > 0.9
