"""Training of USL-T: its step, reassignment, the first heads, its evaluator, what is written."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers import CPU, close, preprocess
from oracles.uslt_losses import Setting, Slow
from torch import nn
from toys.uslt import STRONG_VIEW, TRANSFORM, Training, neighbors_of

from usl import InputError
from usl.augment.rng import Key, one_of, permutation
from usl.models.uslt import HEADS, CosineHead, load_heads
from usl.training.loop import Plan
from usl.training.resume import CHECKPOINT
from usl.training.uslt import (
    Reassignment,
    UsltEvaluator,
    Weights,
    reassign,
    reassigning,
    start_heads,
)
from usl.training.uslt_losses import GlobalCriterion, GlobalOptions


def three_passes(training, images, epoch):
    """The step written out: value, gradient of the heads, and the network as it is left."""
    network, views, setting = copy.deepcopy(training.network), training.views, training.weights
    network.train()
    partners = one_of(neighbors_of(training.data), Key(images, 5, epoch, 2))
    with torch.no_grad():
        w = network(views.standard(images))
    s = network(views(STRONG_VIEW, images, Key(images, 5, epoch, 0)))
    with torch.no_grad():
        n = network(views(STRONG_VIEW, partners, Key(images, 5, epoch, 1)))
    criterion = training.whole.options
    slow = Slow(
        HEADS, 5, len(training.data),
        Setting(
            setting.local, training.local.adjustment, training.local.temperature,
            criterion.threshold, criterion.reweight, criterion.renormalise,
            criterion.mean_outside_mask,
        ),
    )  # fmt: skip
    whole, local = slow.whole(w.double(), s.double()), slow.local(s.double(), n.double())
    (whole + setting.local * local).backward()
    return whole, local, network


@pytest.mark.parametrize("imagenet", [False, True])
def test_a_step_equals_three_forward_passes_written_out(imagenet):
    training = Training(imagenet=imagenet)
    images = torch.tensor([3, 40, 17, 8, 25, 1, 30, 46, 12, 21])
    whole, local, other = three_passes(training, images, 4)
    step = training.make(training.network)
    training.network.train()
    loss, numbers = step(images, 4, 0)
    loss.backward()
    assert whole > 0 and local > 0
    torch.testing.assert_close(numbers["loss_global"].double(), whole, rtol=1e-5, atol=0)
    torch.testing.assert_close(numbers["loss_local"].double(), local, rtol=1e-5, atol=0)
    total = whole + training.weights.local * local
    torch.testing.assert_close(loss.double(), total, rtol=1e-5, atol=0)
    for (name, a), b in zip(training.network.named_parameters(), other.parameters(), strict=True):
        assert (a.grad is None) == (imagenet and name.startswith("backbone."))
        if a.grad is not None:
            assert a.grad.norm() > 0
            error = (a.grad - b.grad).norm() / b.grad.norm()
            assert error < 1e-4, f"{name} {error}"
    # Batch norm has seen the three batches in this order: w, s, n.
    before = Training(imagenet=imagenet).network.state_dict()
    for (name, a), b in zip(
        training.network.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        if "running" in name:
            assert torch.equal(a, before[name]) == imagenet, name
        elif "num_batches" in name:
            assert a == (0 if imagenet else 3)


def test_batch_norm_would_notice_another_order_of_the_passes():
    training = Training()
    images = torch.arange(10)
    expected = three_passes(training, images, 0)[2].backbone.bn1.running_mean
    other = copy.deepcopy(training.network).train()
    partners = one_of(neighbors_of(training.data), Key(images, 5, 0, 2))
    for view in (
        training.views(STRONG_VIEW, images, Key(images, 5, 0, 0)),
        training.views.standard(images),
        training.views(STRONG_VIEW, partners, Key(images, 5, 0, 1)),
    ):
        other(view)
    assert not torch.equal(expected, other.backbone.bn1.running_mean)


def test_a_frozen_backbone_never_moves():
    training = Training(imagenet=True)
    before = copy.deepcopy(training.network.state_dict())
    network = training.run().network
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith("backbone."), name
    assert not any(p.requires_grad for p in network.backbone.parameters())
    network.train()
    assert network.training and network.cluster_head.training
    assert not any(m.training for m in network.backbone.modules())
    whole = Training()
    before = copy.deepcopy(whole.network.state_dict())
    trained = whole.run().network.state_dict()
    assert not any(torch.equal(value, before[name]) for name, value in trained.items())


def test_epochs_without_the_one_or_the_other_loss():
    training = Training(weights=Weights(local=5.0, local_until=1, global_from=1))
    step, images = training.make(training.network), torch.arange(12)
    for epoch, (has_global, has_local) in enumerate([(False, True), (True, True), (True, False)]):
        prob, counted = training.local.prob_ema.clone(), training.whole.num_counts.clone()
        loss, numbers = step(images, epoch, 0)
        loss.backward()
        assert (numbers["loss_global"] > 0) == has_global
        assert (numbers["loss_local"] > 0) == has_local
        assert loss.item() == pytest.approx(
            (numbers["loss_global"] + 5 * numbers["loss_local"]).item()
        )
        assert torch.equal(training.local.prob_ema, prob) != has_local
        assert (training.whole.num_counts - counted).item() == has_global


def empty_cluster(*, reassign):
    """Heads whose last cluster looks away from every image, trained by the global loss alone."""
    training = Training(imagenet=True, reassign=reassign, epochs=6, weights=Weights(local=0.0))
    with torch.no_grad():
        everything = training.network.backbone.eval()(training.views.standard(torch.arange(48)))
        for weight in training.network.head_weights():
            weight[:4] = everything[:4]
            weight[4] = -everything.mean(dim=0)
    before = training.evaluator(training.network.eval())
    return before, training.run().metrics.iloc[-1], training


@pytest.mark.slow
def test_an_empty_cluster_is_filled():
    before, after, _ = empty_cluster(reassign=False)
    for head in range(HEADS):
        assert before[f"nonempty/{head}"] <= 4 and after[f"nonempty/{head}"] <= 4
        assert after[f"smallest/{head}"] == 0
    before, after, training = empty_cluster(reassign=True)
    filled = [head for head in range(HEADS) if after[f"nonempty/{head}"] == 5]
    assert filled, after
    clusters = [p["predictions"] for p in training.evaluator.predictions]
    assert all((clusters[head] == 4).any() for head in filled)


def test_when_clusters_are_reassigned():
    training = Training(imagenet=True)
    after = reassigning(
        training.network, training.whole, Reassignment(after=3, low=6, high=14), seed=1
    )
    training.whole.count_ema.copy_(torch.tensor([5.0, 15, 10, 10, 10]).expand(3, 5))
    weights = [w.clone() for w in training.network.head_weights()]
    # It waits until the global loss has seen more batches than that.
    for number in range(10):
        training.whole.num_counts.fill_(min(number, 3))
        after(number)
    assert all(
        torch.equal(a, b) for a, b in zip(weights, training.network.head_weights(), strict=True)
    )
    training.whole.num_counts.fill_(4)
    after(10)
    for before, now in zip(weights, training.network.head_weights(), strict=True):
        torch.testing.assert_close(now[0], before[1])
        assert not torch.equal(now[0], now[1])
    assert training.whole.count_ema.tolist() == [[7.5, 7.5, 10, 10, 10]] * 3


def test_heads_start_from_the_first_images_of_training():
    training = Training(imagenet=True)
    start_heads(training.network, training.views, images=48, seed=5, batch=4)
    first = permutation(48, seed=5, epoch=0)[: 3 * 5]
    with torch.no_grad():
        features = training.network.backbone.eval()(training.views.standard(first))
    found = torch.cat([w.detach() for w in training.network.head_weights()])
    torch.testing.assert_close(found, features, rtol=1e-5, atol=1e-6)
    # These are the images that the first steps see.
    seen = []
    training.make = lambda network: (
        lambda images, epoch, number: (
            seen.append(images) or sum(p.sum() for p in network.parameters()) * 0,
            {},
        )
    )
    training.plan = Plan(epochs=1, batch_size=16, lr=1e-3, seed=5)
    training.run()
    assert torch.cat(seen)[:15].tolist() == first.tolist()
    message = "3 heads of 5 clusters start from 15 images, and there are 14; lower `clusters`"
    with pytest.raises(InputError, match=message):
        start_heads(training.network, training.views, images=14, seed=5, batch=4)


def test_what_is_watched_is_what_the_heads_predict():
    training = Training()
    network = training.network.eval()
    found = training.evaluator(network)
    with torch.no_grad():
        p = network(training.views.standard(torch.arange(48))).double().softmax(dim=2)
    for head in range(HEADS):
        clusters, confidence = p[:, head].argmax(dim=1), p[:, head].amax(dim=1)
        share = p[:, head].mean(dim=0)
        assert found[f"nonempty/{head}"] == len(clusters.unique())
        assert found[f"largest/{head}"] == torch.bincount(clusters).max()
        assert found[f"above/{head}"] == pytest.approx((confidence > 0.25).double().mean().item())
        assert found[f"confidence/{head}"] == pytest.approx(confidence.mean().item(), rel=1e-5)
        assert found[f"entropy/{head}"] == pytest.approx(
            -(share * share.log()).sum().item(), rel=1e-5
        )
        kept = training.evaluator.state_dict()[head]
        assert torch.equal(kept["predictions"], clusters) and len(kept["confidence"]) == 48
    blind = Training(labelled=False).evaluator(network)
    assert set(found) - set(blind) == {f"{k}/{h}" for k in ("macc", "nmi", "ari") for h in range(3)}
    assert all(found[name] == value for name, value in blind.items())


def test_empty_clusters_are_recognised_and_said(caplog):
    training = Training()
    with torch.no_grad():
        for head in training.network.cluster_head:
            head.weight.zero_()
        training.network.cluster_head[0].bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]))
    training.evaluator(training.network.eval())
    assert "head 0: only 1 of 5 clusters are not empty; raise the adjustment weight" in caplog.text

    # Two images cannot keep three of five clusters non-empty.
    caplog.clear()
    two = replace(training.data, images=training.data.images[:2], labels=training.data.labels[:2])
    UsltEvaluator(two, preprocess(two, TRANSFORM), threshold=0, batch_size=2, device=CPU)(
        training.network
    )
    assert "not empty" not in caplog.text

    class Lopsided(nn.Module):
        def forward(self, x):
            out = torch.zeros(len(x), 1, 3)
            brightness = x.mean(dim=(1, 2, 3))
            out[..., 0] = 1
            out[brightness == brightness.max(), :, 1] = 9
            return out

    caplog.clear()
    training.evaluator(Lopsided())
    assert (
        "head 0: one of 3 clusters has 45 of 48 images; raise the adjustment weight" in caplog.text
    )


@pytest.mark.parametrize("imagenet", [False, True])
def test_what_training_writes_has_the_released_layout(tmp_path, imagenet):
    training = Training(tmp_path, imagenet=imagenet, epochs=2)
    training.run()
    content = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert {"model", "optimizer", "epoch", "val_predictions"} <= set(content)
    assert content["ema_model"] is None and content["epoch"] == 2
    assert {k: v.shape for k, v in content["criterion_local"].items()} == {"prob_ema": (3, 5)}
    counts = {"num_counts": (1,)} | ({"count_ema": (3, 5)} if imagenet else {})
    assert {k: v.shape for k, v in content["criterion_global"].items()} == counts
    assert content["criterion_global"]["num_counts"].tolist() == [6]
    assert content["criterion_global"]["num_counts"].dtype == torch.int64
    assert len(content["val_predictions"]) == HEADS
    heads = load_heads(tmp_path / CHECKPOINT)
    assert type(heads[0]) is (CosineHead if imagenet else nn.Linear) and not heads.training
    for a, b in zip(heads.parameters(), training.network.cluster_head.parameters(), strict=True):
        assert torch.equal(a, b)


def test_reassignment_by_hand():
    whole = GlobalCriterion(4, 3, GlobalOptions(), images=1)
    whole.count_ema.copy_(
        torch.tensor([[10.0, 700, 60], [50, 700, 60], [10, 500, 60], [700, 60, 49.9]])
    )
    weights = [torch.randn(3, 400, generator=torch.Generator().manual_seed(h)) for h in range(4)]
    before = [weight.clone() for weight in weights]

    def changed(weights, whole, seed):
        generator = torch.Generator().manual_seed(seed)
        return reassign(weights, whole.count_ema, low=50, high=500, generator=generator)

    again = [weight.clone() for weight in weights], copy.deepcopy(whole)
    assert changed(weights, whole, 5) == 2
    # Heads 1 and 2 are within the bounds: not below 50, not above 500.
    assert torch.equal(weights[1], before[1]) and torch.equal(weights[2], before[2])
    assert whole.count_ema[1:3].tolist() == [[50, 700, 60], [10, 500, 60]]
    for head, smallest, largest in ((0, 0, 1), (3, 2, 0)):
        old, new = before[head], weights[head]
        rest = 3 - smallest - largest
        assert torch.equal(new[rest], old[rest])
        close(new[smallest] + new[largest], 2 * old[largest])
        noise = (new[smallest] - old[largest]) / 1e-7
        assert abs(noise.mean()) < 0.2 and noise.std() == pytest.approx(1, abs=0.15)
        assert whole.count_ema[head, [smallest, largest]].tolist() == [350, 350]
        assert whole.count_ema[head, rest] == 60
    # The same draws, the same weights; other draws, others.
    assert changed(*again, 5) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, again[0], strict=True))
    other = [weight.clone() for weight in before], copy.deepcopy(whole)
    other[1].count_ema[0] = torch.tensor([10.0, 700, 60])
    changed(*other, 6)
    assert not torch.equal(other[0][0], weights[0])
