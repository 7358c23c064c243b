"""Supervised training: the step against an oracle, views, accuracy, processes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import (
    CPU,
    Watched,
    in_processes,
    labelled,
    preprocess,
    small_backbone,
    tiny_images,
)
from oracles.networks import small_resnet_features
from toys.supervised import Fixed, accuracy_in_parts, numbered, outcome, plain_preprocess, train

from usl import InputError
from usl.augment.moco import MocoTransform
from usl.augment.views import Views
from usl.data.datasets import ImageDataset
from usl.models.classifier import Classifier
from usl.training import supervised
from usl.training.loop import Plan, fit
from usl.training.supervised import AccuracyEvaluator, LabelledViews, supervised_step


@pytest.mark.parametrize("frozen", [True, False])
def test_what_moves(frozen):
    network = Classifier(small_backbone(), 64, 3, cld=True)
    if frozen:
        network.freeze_backbone()
    assert all(p.requires_grad is not frozen for p in network.backbone.parameters())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    train(network)
    for name, value in network.state_dict().items():
        parameter = name in dict(network.named_parameters())
        stays = frozen and parameter and not name.startswith("linear.")
        assert torch.equal(value, before[name]) is stays, name


@pytest.mark.parametrize("cld", [True, False])
def test_one_step_equals_the_oracle(cld):
    data = tiny_images(40)
    network = Classifier(small_backbone(), 64, 3, cld=cld).double()
    network.freeze_backbone()
    with torch.no_grad():
        for name, buffer in network.named_parameters():
            if ".bn" in name:
                buffer += 0.2 * torch.randn_like(buffer)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    views = Watched(Views(data, preprocess(data), device=CPU), torch.float64)
    optimizer = torch.optim.SGD(
        network.linear.parameters(), lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    plan = Plan(epochs=1, steps=1, batch_size=6, lr=0.3, schedule="constant", seed=2)
    chosen = labelled(data, 30, 4, 11)
    trained = fit(
        network,
        supervised_step(LabelledViews(views, MocoTransform(), chosen, seed=5)),
        optimizer,
        plan,
        images=9,
        device=CPU,
    )

    ((_, of, keys, epoch, view),) = views.calls
    assert [k % 40 for k in keys] == of and set(of) <= {30, 4, 11} and (epoch, view) == (0, 0)
    (x,) = views.given
    backbone = {k.removeprefix("backbone."): v for k, v in start.items() if "backbone" in k}
    f = small_resnet_features(backbone, x)
    y, n = np.eye(3)[data.labels[of]], len(of)
    z = f @ start["linear.weight"].numpy().T + start["linear.bias"].numpy()
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    logits = z / norms if cld else z
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log((p * y).sum(axis=1)).mean()
    assert trained.metrics["loss"][0] == pytest.approx(loss, rel=1e-6)
    right = 100 * (logits.argmax(axis=1) == y.argmax(axis=1)).mean()
    assert trained.metrics["train_accuracy"][0] == pytest.approx(right)

    g = (p - y) / n
    if cld:
        # Through the division by the length.
        g = (g - logits * (g * logits).sum(axis=1, keepdims=True)) / norms
    gradients = {"linear.weight": g.T @ f, "linear.bias": g.sum(axis=0)}
    for name, gradient in gradients.items():
        # Nesterov's first step: the gradient with decay, and 0.9 of it again. The tolerance is
        # that of the loss, which is computed in float32.
        gradient = gradient + 0.01 * start[name].numpy()
        expected = start[name].numpy() - 0.3 * (gradient + 0.9 * gradient)
        np.testing.assert_allclose(
            network.state_dict()[name].numpy(), expected, rtol=1e-5, atol=1e-7
        )


def test_every_visit_of_an_image_is_another_view_whatever_the_list():
    data = tiny_images(40)

    def shown(*chosen):
        views = Watched(Views(data, preprocess(data), device=CPU), torch.float64)
        seen = LabelledViews(views, MocoTransform(), labelled(data, *chosen), seed=5)
        step = supervised_step(seen)(small_backbone().double())
        for epoch in (0, 1):
            step(torch.arange(4 * len(chosen)), epoch, 0)
        return {
            (epoch, image, key // 40): row
            for (_, of, keys, epoch, _), x in zip(views.calls, views.given, strict=True)
            for key, image, row in zip(keys, of, x, strict=True)
        }

    one, other = shown(3, 8), shown(30, 8, 3)
    visits = [key for key in one if key[1] == 8]
    assert len(visits) == 8
    for i, key in enumerate(visits):
        assert all(not torch.equal(one[key], one[before]) for before in visits[:i])
        torch.testing.assert_close(one[key], other[key])


def test_accuracy():
    test = tiny_images(30, split="test")
    answers = test.labels.copy()
    answers[[0, 7, 9]] = 0
    answers[answers == 2] = 1
    test = ImageDataset("tiny", "test", test.images, answers, ("a", "b", "c"))

    class First(torch.nn.Module):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return torch.tensor([[1.0, 0.0, 0.0]]).expand(len(x), -1)

    tested = supervised.AccuracyEvaluator(test, preprocess(test), batch_size=8, device=CPU)
    network = First()
    accuracy = tested(network)["accuracy"]
    assert accuracy == pytest.approx(100 * (answers == 0).mean())
    calls = First.calls
    by_class = tested.by_class(network)
    assert by_class[:2].tolist() == [100, 0] and np.isnan(by_class[2]) and First.calls == calls
    again = supervised.AccuracyEvaluator(test, preprocess(test), batch_size=8, device=CPU)
    np.testing.assert_equal(again.by_class(network), by_class)
    without = ImageDataset("tiny", "test", test.images, None, ("a",))
    with pytest.raises(InputError, match="the test images of tiny have no labels"):
        supervised.AccuracyEvaluator(without, preprocess(test), batch_size=8, device=CPU)


@pytest.mark.slow
def test_training_learns_what_it_is_shown():
    data = tiny_images(40)
    stripes = np.zeros_like(data.images)
    for image, label in zip(stripes, data.labels, strict=True):
        image[:: label + 2] = 255
    data = ImageDataset("stripes", "train", stripes, data.labels, data.classes)
    metrics = train(Classifier(small_backbone(), 64, 3), epochs=8, repeats=20, data=data).metrics
    assert metrics["loss"].iloc[-1] < 0.5 * metrics["loss"][0]
    assert metrics["train_accuracy"].iloc[-1] > metrics["train_accuracy"][0]


@pytest.mark.slow
def test_two_processes_nearly_equal_one(tmp_path):
    # Batch norm adds up over processes in another order; later steps enlarge that.
    results = [in_processes(tmp_path / "worker.py", count, outcome) for count in (1, 2)]
    (one_loss, one), (two_loss, two) = results
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-3)


def test_right_among_the_five_most_probable():
    data = numbered(8)
    logits = np.arange(7.0)[None] * np.where(np.arange(8) < 6, 1, -1)[:, None]
    # Of images 0 to 5 class 6 is the most probable, of the other two class 0.
    logits = logits.astype(np.float32)
    labels = np.array([6, 6, 2, 1, 0, 5, 0, 5])
    data = replace(data, labels=labels, classes=tuple("abcdefg"))
    evaluator = AccuracyEvaluator(data, plain_preprocess(data), batch_size=3, device=CPU, top5=True)
    found = evaluator(Fixed(logits))
    assert found == {"accuracy": 100 * 3 / 8, "top5": 100 * 5 / 8}
    np.testing.assert_allclose(
        evaluator.by_class(None), [50, 0, 0, np.nan, np.nan, 0, 100], equal_nan=True
    )
    # Of five classes or fewer it would be everything.
    five = replace(data, labels=labels % 5, classes=tuple("abcde"))
    evaluator = AccuracyEvaluator(five, plain_preprocess(five), batch_size=3, device=CPU, top5=True)
    assert set(evaluator(Fixed(logits[:, :5]))) == {"accuracy"}


@pytest.mark.slow
def test_two_processes_test_their_parts_and_know_the_whole(tmp_path):
    found = in_processes(tmp_path / "parts.py", 2, accuracy_in_parts, 11, 1)
    for count, both, alone in zip((11, 1), found, accuracy_in_parts(11, 1), strict=True):
        assert both[0] == alone[0] and both[2] == -(-count // 2) and alone[2] == count
        np.testing.assert_array_equal(both[1], alone[1])
