"""USL-T: losses against a slow oracle, its step, revival, picks, layouts, killed runs, ranks."""

import copy
import json
import logging
import math
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, in_processes, same
from torch import nn
from usl.data.draws import one_of, permutation, uniform
from usl.data.strong import ScanChain
from usl.data.views import Views
from usl.selection.neighbors import find_neighbors, itself_first
from usl.selection.uslt import best_of_clusters, confident, pseudo_labels

from usl import InputError
from usl.config import parse, uslt_imagenet_pretrain_defaults, uslt_pretrain_defaults
from usl.data.datasets import ImageDataset
from usl.metrics import cluster_summary
from usl.models.resnet_cifar import CifarResNet, small_resnet
from usl.models.uslt import HEADS, CosineHead, UsltNetwork, load_heads, new_heads
from usl.training.loop import CHECKPOINT, Plan, fit
from usl.training.uslt import (
    Reassignment,
    Watch,
    Weights,
    reassigning,
    start_heads,
    uslt_step,
)
from usl.training.uslt_losses import (
    GlobalCriterion,
    GlobalOptions,
    LocalCriterion,
    global_loss,
    local_loss,
)

CPU = torch.device("cpu")
NAMES = json.loads((Path(__file__).parent / "state_dicts.json").read_text())
TRANSFORM = "SCAN-cifar10"
CHAIN = ScanChain(fill=(0.4914, 0.4822, 0.4465))


@dataclass(frozen=True)
class Setting:
    """A column of the table of method.md, section 5."""

    scale: float
    adjustment: float
    temperature: float
    threshold: float
    reweight: bool
    renormalise: bool
    outside: bool

    def options(self):
        return GlobalOptions(self.threshold, self.reweight, self.renormalise, self.outside)


PUBLISHED = {
    "cifar10": Setting(5, 5, 0.25, 0.95, True, False, False),
    "cifar100": Setting(5, 5, 0.25, 0.95, True, False, True),
    "imagenet100": Setting(0.5, 2.5, 0.5, 0, False, True, True),
    "imagenet": Setting(0.5, 2.5, 0.5, 0, False, False, True),
}


def slow_softmax(row):
    powers = [math.exp(x) for x in row]
    return [p / sum(powers) for p in powers]


def slow_log_softmax(row, c):
    return row[c] - torch.log(sum(torch.exp(x) for x in row))


class Slow:
    """Both losses and their averages, image by image and cluster by cluster, in float64."""

    def __init__(self, heads, clusters, images, setting):
        self.images, self.setting = images, setting
        self.prob = [[1 / clusters] * clusters for _ in range(heads)]
        self.count = [[1 / clusters] * clusters for _ in range(heads)]

    def whole(self, w, s):
        """(n, H, C) twice; the sum over heads."""
        total = 0.0 * s.sum()
        for head in range(len(self.count)):
            total = total + self._whole(w[:, head].tolist(), s[:, head], head)
        return total

    def _whole(self, w, s, head):
        clusters, chosen = s.shape[1], []
        for i, row in enumerate(w):
            p = slow_softmax(row)
            if max(p) > self.setting.threshold:
                chosen.append((i, p.index(max(p))))
        if not chosen:
            return 0.0
        counts = [sum(t == c for _, t in chosen) for c in range(clusters)]
        present = sum(count > 0 for count in counts)
        weights = [1.0] * clusters
        for c, count in enumerate(counts):
            if count and self.setting.renormalise:
                weights[c] = len(chosen) / (present * count)
            elif count and self.setting.reweight:
                weights[c] = len(chosen) / count
        for c, count in enumerate(counts):
            share = count / len(chosen) * self.images
            self.count[head][c] = 0.9 * self.count[head][c] + 0.1 * share
        summed = sum(-weights[t] * slow_log_softmax(s[i], t) for i, t in chosen)
        return summed / (len(w) if self.setting.outside else sum(weights[t] for _, t in chosen))

    def local(self, s, n):
        """(n, H, C) twice; the sum over heads."""
        return sum(
            self._local(s[:, head], n[:, head].tolist(), head) for head in range(len(self.prob))
        )

    def _local(self, s, n, head):
        prob, total = self.prob[head], 0.0
        for i, row in enumerate(n):
            logs = [math.log(p) for p in prob]
            q = slow_softmax(
                [x - self.setting.adjustment * log for x, log in zip(row, logs, strict=True)]
            )
            sharp = [x ** (1 / self.setting.temperature) for x in q]
            for c, x in enumerate(sharp):
                if x > 0:
                    t = x / sum(sharp)
                    total = total + t * (math.log(t) - slow_log_softmax(s[i], c))
        predictions = [slow_softmax(row) for row in n]
        now = [sum(p[c] for p in predictions) / len(n) for c in range(len(prob))]
        mixed = [0.5 * a + 0.5 * b for a, b in zip(prob, now, strict=True)]
        self.prob[head] = [x / sum(mixed) for x in mixed]
        return total / len(n)


@pytest.fixture
def double():
    """Everything is float64, so that the comparison can be strict."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def logits(seed, n=14, clusters=5):
    """Logits of three heads: sure, hardly sure, and sure of few clusters."""
    x = torch.randn(n, 3, clusters, generator=torch.Generator().manual_seed(seed))
    return x * torch.tensor([4.0, 1.0, 6.0])[:, None]


def close(a, b):
    torch.testing.assert_close(a, torch.as_tensor(b, dtype=a.dtype), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", PUBLISHED)
def test_losses_gradients_and_averages_equal_the_oracle(double, name):
    setting = PUBLISHED[name]
    slow = Slow(3, 5, 1000, setting)
    whole = GlobalCriterion(3, 5, setting.options(), images=1000)
    local = LocalCriterion(3, 5, adjustment=setting.adjustment, temperature=setting.temperature)
    for step in range(5):
        w, s, n = (logits(10 * step + view).requires_grad_() for view in range(3))
        if step == 2:
            # Nothing is confident in this step, of any head.
            w = (w.detach() * 1e-3).requires_grad_()
        for fast, other in (
            (whole(w, s), slow.whole(w, s)),
            (setting.scale * local(s, n), setting.scale * slow.local(s, n)),
        ):
            close(fast, other)
            ours = torch.autograd.grad(fast, [s, w, n], allow_unused=True)
            assert ours[1] is None and ours[2] is None
            close(ours[0], torch.autograd.grad(other, s)[0])
        if step == 2 and setting.threshold:
            assert whole(w, s) == 0
            whole.num_counts -= 1
        close(local.prob_ema, slow.prob)
        close(whole.count_ema, slow.count)
        assert whole.num_counts.tolist() == [step + 1]


@pytest.mark.parametrize("reweight", [False, True])
@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("threshold", [0, 0.4, 0.95, 0.999999])
def test_every_form_of_the_global_loss(double, reweight, renormalise, outside, threshold):
    setting = Setting(1, 0, 1, threshold, reweight, renormalise, outside)
    for head in range(3):
        w, s = logits(0)[:, head], logits(1)[:, head].requires_grad_()
        slow = Slow(1, 5, 1, setting)
        fast, counts = global_loss(w, s, setting.options())
        close(fast, slow.whole(w[:, None], s[:, None]))
        confidence = w.softmax(dim=1).amax(dim=1)
        assert counts.sum() == (confidence > threshold).sum()


def test_global_loss_by_hand(double):
    # Two images of cluster 0, one of cluster 1, one that is not confident; none of cluster 2.
    w = torch.tensor([[9.0, 0, 0], [9, 0, 0], [0, 9, 0], [0.1, 0, 0]]) * 2
    s = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [5, 0, 0]])
    z = math.log(math.e + 2)
    a, b, c = z - 1, z, z
    for options, expected in (
        ((False, False, False), (a + b + c) / 3),
        ((False, False, True), (a + b + c) / 4),
        ((True, False, False), (1.5 * (a + b) + 3 * c) / 6),
        ((True, False, True), (1.5 * (a + b) + 3 * c) / 4),
        ((False, True, True), (0.75 * (a + b) + 1.5 * c) / 4),
        ((True, True, False), (0.75 * (a + b) + 1.5 * c) / 3),
    ):
        loss, counts = global_loss(w, s, GlobalOptions(0.95, *options))
        close(loss, expected)
        assert counts.tolist() == [2, 1, 0]
    # Above the threshold, not at it.
    even = torch.zeros(3, 2)
    assert global_loss(even, torch.randn(3, 2), GlobalOptions(0.5))[1].tolist() == [0, 0]
    assert global_loss(even, torch.randn(3, 2), GlobalOptions(0.49))[1].sum() == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_loss_falls_under_plain_gradient_steps(name):
    setting = PUBLISHED[name]

    def fall(loss):
        s, values = logits(1)[:, 0].requires_grad_(), []
        for _ in range(30):
            value = loss(s)
            values.append(value.item())
            s.data -= 0.3 * torch.autograd.grad(value, s)[0]
        return values

    prob = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])
    for values in (
        fall(lambda s: global_loss(logits(0)[:, 0], s, setting.options())[0]),
        fall(
            lambda s: local_loss(
                s,
                logits(2)[:, 0],
                prob,
                adjustment=setting.adjustment,
                temperature=setting.temperature,
            )
        ),
    ):
        assert values[0] > 0.1 and all(b < a for a, b in pairwise(values))


def test_a_cluster_that_nobody_predicts_any_more_gives_no_nan():
    local = LocalCriterion(3, 5, adjustment=5, temperature=0.25)
    local.prob_ema[:, 0] = 0
    s = logits(0).requires_grad_()
    loss = local(s, logits(1))
    (gradient,) = torch.autograd.grad(loss, s)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()
    assert torch.isfinite(local.prob_ema).all()


# What a config's name begins with; epochs, batch and clusters; what reassigns.
TRAINED = {
    "cifar10": ("cifar10", (200, 1024, 40), None),
    "cifar100": ("cifar100", (200, 1024, 400), None),
    "imagenet100": ("ImageNet100", (100, 2048, 400), (124, 50, 500)),
    "imagenet": ("ImageNet", (10, 2048, 3000), (1250, 100, 1000)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_configs_have_the_settings_of_the_table(name):
    stem, expected, moved = TRAINED[name]
    defaults = uslt_imagenet_pretrain_defaults if moved else uslt_pretrain_defaults
    cfg = parse(
        defaults(),
        ["--cfg", f"{stem}_usl-t_pretrain.yaml"],
        script=str(ROOT / "usl-t_pretraining" / "pretrain.py"),
    )
    u, optimizer = cfg.USLT_PRETRAIN, cfg.OPTIMIZER
    assert PUBLISHED[name] == Setting(
        u.LOCAL_LOSS_SCALE, u.ADJUSTMENT_WEIGHT, u.SHARPEN_TEMPERATURE, u.CONFIDENCE_THRESHOLD,
        u.REWEIGHT, u.REWEIGHT_RENORM, u.MEAN_OUTSIDE_MASK,
    )  # fmt: skip
    found = (cfg.EPOCHS, cfg.DATALOADER.BATCH_SIZE, u.NUM_SELECTED_SAMPLES)
    assert found == expected
    assert (optimizer.NAME, optimizer.LR, optimizer.WEIGHT_DECAY) == ("Adam", 1e-4, 1e-4)
    assert (cfg.SCHEDULE, cfg.WARMUP_EPOCHS) == ("constant", 0)
    assert (u.EMA_DECAY, cfg.SEED, u.NUM_NEIGHBORS) == (0, 42, 20)
    # Both losses from the first epoch to the last.
    assert u.GLOBAL_START_EPOCH == 0 and cfg.EPOCHS <= u.TURN_OFF_LOCAL_LOSS_AFTER_EPOCH
    assert u.UPDATE_HEAD_ONLY is bool(moved)
    if moved:
        found = (u.REASSIGN_AFTER_STEPS, u.COUNT_EMA_MIN_TH, u.COUNT_EMA_MAX_TH)
        assert found == moved


def test_reassignment_by_hand(double):
    whole = GlobalCriterion(4, 3, GlobalOptions(), images=1)
    whole.count_ema.copy_(
        torch.tensor([[10.0, 700, 60], [50, 700, 60], [10, 500, 60], [700, 60, 49.9]])
    )
    weights = [torch.randn(3, 400, generator=torch.Generator().manual_seed(h)) for h in range(4)]
    before = [weight.clone() for weight in weights]

    def reassign(weights, whole, seed):
        generator = torch.Generator().manual_seed(seed)
        return whole.reassign(weights, low=50, high=500, generator=generator)

    again = [weight.clone() for weight in weights], copy.deepcopy(whole)
    assert reassign(weights, whole, 5) == 2
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
    assert reassign(*again, 5) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, again[0], strict=True))
    other = [weight.clone() for weight in before], copy.deepcopy(whole)
    other[1].count_ema[0] = torch.tensor([10.0, 700, 60])
    reassign(*other, 6)
    assert not torch.equal(other[0][0], weights[0])


def colours(n=48, groups=4, labelled=True):
    """Images of a few plain colours with noise, in the order 0, 1, 2, 3, 0, …"""
    random = np.random.RandomState(3)
    kinds = random.randint(40, 216, (groups, 1, 1, 3))
    labels = np.arange(n) % groups
    images = kinds[labels] + random.randint(-30, 31, (n, 32, 32, 3))
    classes = tuple("abcdefgh"[:groups])
    images = images.clip(0, 255).astype(np.uint8)
    return ImageDataset("colours", "train", images, labels if labelled else None, classes)


def neighbors_of(data):
    pixels = torch.from_numpy(data.images.reshape(len(data), -1).astype(np.float32))
    return itself_first(find_neighbors(pixels, 6).indices)


class Training:
    """A small training of USL-T: the CIFAR form, or with ``imagenet`` frozen and reassigning."""

    def __init__(
        self,
        folder=None,
        *,
        imagenet=False,
        die_at=None,
        spoil_at=None,
        reassign=True,
        labelled=True,
        weights=None,
        **plan,
    ):
        self.data = colours(labelled=labelled)
        self.folder, self.die_at, self.spoil_at = folder, die_at, spoil_at
        self.imagenet, self.does_reassign = imagenet, imagenet and reassign
        torch.manual_seed(0)
        heads = new_heads(64, 5, cosine=imagenet)
        backbone = CifarResNet(**small_resnet(2, 10))
        self.network = UsltNetwork(backbone, heads, frozen=imagenet)
        self.views = Views(self.data, TRANSFORM, seed=5, device=CPU)
        setting = PUBLISHED["imagenet100" if imagenet else "cifar10"]
        threshold = 0 if imagenet else 0.25
        options = GlobalOptions(threshold, setting.reweight, setting.renormalise, setting.outside)
        self.local = LocalCriterion(
            HEADS, 5, adjustment=setting.adjustment, temperature=setting.temperature
        )
        self.whole = GlobalCriterion(HEADS, 5, options, images=48 if imagenet else 0)
        self.watch = Watch(self.data, TRANSFORM, threshold=threshold, batch_size=20, device=CPU)
        self.weights = weights or Weights(local=setting.scale)
        self.plan = Plan(
            **({"epochs": 3, "batch_size": 16, "lr": 1e-3, "schedule": "constant"} | plan)
        )

    def make(self, network):
        step = uslt_step(
            self.views, CHAIN, neighbors_of(self.data), self.local, self.whole, self.weights,
            seed=5,
        )(network)  # fmt: skip

        def dies(images, epoch, number):
            if number == self.die_at:
                raise KeyboardInterrupt
            loss, numbers = step(images, epoch, number)
            return loss * (math.nan if number == self.spoil_at else 1), numbers

        return dies

    def run(self):
        reassignment = Reassignment(after=2, low=6, high=14)
        after = reassigning(self.network, self.whole, reassignment, seed=5)
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        return fit(
            self.network, self.make, torch.optim.Adam(parameters, lr=1e-3, weight_decay=1e-4),
            self.plan, images=48, device=CPU, folder=self.folder, evaluate=self.watch,
            after_step=after if self.does_reassign else None,
            extras={
                "criterion_local": self.local,
                "criterion_global": self.whole,
                "val_predictions": self.watch,
            },
        )  # fmt: skip


def three_passes(training, images, epoch):
    """The step written out: value, gradient of the heads, and the network as it is left."""
    network, views, setting = copy.deepcopy(training.network), training.views, training.weights
    network.train()
    partners = one_of(neighbors_of(training.data), images, seed=5, epoch=epoch, view=2)
    with torch.no_grad():
        w = network(views.standard(images))
    s = network(views(CHAIN, images, epoch, 0))
    with torch.no_grad():
        n = network(views(CHAIN, images, epoch, 1, of=partners))
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
    partners = one_of(neighbors_of(training.data), images, seed=5, epoch=0, view=2)
    for view in (
        training.views(CHAIN, images, 0, 0),
        training.views.standard(images),
        training.views(CHAIN, images, 0, 1, of=partners),
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
    training = Training(weights=Weights(local=5.0, local_until=2, global_from=1))
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


def dead_cluster(*, reassign):
    """Heads whose last cluster looks away from every image, trained by the global loss alone."""
    training = Training(
        imagenet=True, reassign=reassign, epochs=6, weights=Weights(local=0.0, local_until=0)
    )
    with torch.no_grad():
        everything = training.network.backbone.eval()(training.views.standard(torch.arange(48)))
        for weight in training.network.head_weights():
            weight[:4] = everything[:4]
            weight[4] = -everything.mean(dim=0)
    before = training.watch(training.network.eval())
    return before, training.run().metrics.iloc[-1], training


def test_a_dead_cluster_is_revived():
    before, after, _ = dead_cluster(reassign=False)
    for head in range(HEADS):
        assert before[f"live/{head}"] <= 4 and after[f"live/{head}"] <= 4
        assert after[f"smallest/{head}"] == 0
    before, after, training = dead_cluster(reassign=True)
    revived = [head for head in range(HEADS) if after[f"live/{head}"] == 5]
    assert revived, after
    clusters = [p["predictions"] for p in training.watch.predictions]
    assert all((clusters[head] == 4).any() for head in revived)


def test_when_clusters_are_reassigned():
    training = Training(imagenet=True)
    after = reassigning(training.network, training.whole, Reassignment(3, 6, 14), seed=1)
    training.whole.count_ema.copy_(torch.tensor([5.0, 15, 10, 10, 10]).expand(3, 5))
    weights = [w.clone() for w in training.network.head_weights()]
    for number in range(3):
        after(number)
    assert all(
        torch.equal(a, b) for a, b in zip(weights, training.network.head_weights(), strict=True)
    )
    after(3)
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
    message = (
        "3 heads of 5 clusters start from 15 images, and there are 14; lower USLT_PRETRAIN.NUM"
    )
    with pytest.raises(InputError, match=message):
        start_heads(training.network, training.views, images=14, seed=5, batch=4)


def test_heads():
    linear, cosine = new_heads(8, 6, cosine=False), new_heads(8, 6, cosine=True)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    network = UsltNetwork(nn.Identity(), linear)
    out = network(x)
    assert out.shape == (5, 3, 6)
    for h, head in enumerate(linear):
        torch.testing.assert_close(out[:, h], x @ head.weight.T + head.bias)
    for h, head in enumerate(cosine):
        lengths = x.norm(dim=1, keepdim=True) * head.weight.norm(dim=1)
        expected = 40 * (x @ head.weight.T) / lengths
        torch.testing.assert_close(UsltNetwork(nn.Identity(), cosine)(x)[:, h], expected)
    with pytest.raises(InputError, match="NUM_SELECTED_SAMPLES is 1; choose at least 2 clusters"):
        new_heads(8, 1, cosine=False)


def slow_picks(clusters, score, budget, by_size):
    members = {}
    for i in sorted(range(len(clusters)), key=lambda i: (-score[i], i)):
        members.setdefault(clusters[i], []).append(i)
    by_population = sorted(members, key=lambda c: (-len(members[c]), c))
    rounds = []
    for turn in range(len(clusters)):
        rounds += [(turn, c, members[c][turn]) for c in by_population if turn < len(members[c])]
    chosen = rounds[:budget]
    if not by_size:
        chosen = sorted(chosen, key=lambda row: row[1] if row[0] == 0 else math.inf)
    return [image for _, _, image in chosen]


def test_picks_by_hand():
    clusters = torch.tensor([2, 0, 2, 2, 0, 5, 2])
    score = torch.tensor([0.5, 0.9, 0.7, 0.7, 0.8, 0.1, 0.2])
    # Clusters 1, 3 and 4 are dead. One pick each, in index order; of equal ones the first.
    assert best_of_clusters(clusters, score, 3).tolist() == [1, 2, 5]
    assert best_of_clusters(clusters, score, 3, by_size=True).tolist() == [2, 1, 5]
    # Fewer: the largest clusters.
    assert best_of_clusters(clusters, score, 2).tolist() == [1, 2]
    assert best_of_clusters(clusters, score, 1).tolist() == [2]
    # More: the next best of the largest in turn.
    assert best_of_clusters(clusters, score, 5).tolist() == [1, 2, 5, 3, 4]
    assert best_of_clusters(clusters, score, 6).tolist() == [1, 2, 5, 3, 4, 0]
    assert best_of_clusters(clusters, score, 7).tolist() == [1, 2, 5, 3, 4, 0, 6]
    assert best_of_clusters(clusters, score, 7, by_size=True).tolist() == [2, 1, 5, 3, 4, 0, 6]
    # Clusters of equal size: the lowest index first.
    equal = torch.tensor([3, 1, 3, 1])
    assert best_of_clusters(equal, torch.ones(4), 1).tolist() == [1]
    assert best_of_clusters(equal, torch.ones(4), 3).tolist() == [1, 0, 3]
    for budget in (0, -1, 8):
        with pytest.raises(InputError, match=f"a budget of {budget} picks from 7 images"):
            best_of_clusters(clusters, score, budget)


@pytest.mark.parametrize("by_size", [False, True])
def test_picks_equal_the_slow_form(by_size):
    random = np.random.RandomState(0)
    for _ in range(60):
        n = random.randint(1, 40)
        clusters = random.randint(random.randint(1, 30), size=n)
        score = random.randint(4, size=n) if random.rand() < 0.5 else random.rand(n)
        for budget in {1, n, random.randint(1, n + 1), random.randint(1, n + 1)}:
            found = best_of_clusters(
                torch.from_numpy(clusters), torch.from_numpy(score), budget, by_size=by_size
            ).tolist()
            assert found == slow_picks(clusters.tolist(), score.tolist(), budget, by_size)
            assert len(set(found)) == budget


def test_confidence_by_hand():
    # Probabilities of two heads, by image.
    first, second = torch.tensor(
        [
            [[0.7, 0.2, 0.1], [0.25, 0.5, 0.25], [0.4, 0.2, 0.4]],
            [[0.1, 0.1, 0.8], [0.3, 0.3, 0.4], [0.2, 0.6, 0.2]],
        ],
        dtype=torch.float64,
    )
    logits = torch.stack([first, second], dim=1).log() + 3
    clusters, own = confident(logits, head=0, mean_of_heads=False)
    assert clusters.tolist() == [0, 1, 0] and own.dtype == torch.float64
    close(own, first.amax(1))
    clusters, mean = confident(logits, head=0, mean_of_heads=True)
    assert clusters.tolist() == [0, 1, 0]
    close(mean, (first.amax(1) + second.amax(1)) / 2)
    clusters, own = confident(logits, head=1, mean_of_heads=False)
    assert clusters.tolist() == [2, 2, 1]
    close(own, second.amax(1))
    for head in (-1, 2):
        with pytest.raises(InputError, match=f"USLT.HEAD_IN_USE is {head}; the checkpoint has hea"):
            confident(logits, head=head, mean_of_heads=True)


def test_equal_logits_belong_to_the_lowest_cluster():
    logits = torch.zeros(70, 1, 300)
    logits[:, :, 7::9] = 1.0
    clusters, _ = confident(logits, head=0, mean_of_heads=False)
    assert clusters.tolist() == [7] * 70


def slow_pseudo_labels(clusters, spread, picks, labels, count):
    given = [-1] * len(clusters)
    for pick, label in zip(reversed(picks), reversed(labels), strict=True):
        members = [i for i in range(len(clusters)) if clusters[i] == clusters[pick]]
        for i in sorted(members, key=lambda i: (spread[i], i))[:count]:
            given[i] = label
    for pick, label in zip(picks, labels, strict=True):
        given[pick] = label
    return given


def test_pseudo_labels_by_hand():
    clusters = torch.tensor([0, 0, 0, 1, 1, 2])
    spread = torch.tensor([0.3, 0.1, 0.2, 0.5, 0.5, 0.1]).double()

    def given(picks, labels, count):
        picks, labels = torch.tensor(picks), torch.tensor(labels)
        return pseudo_labels(clusters, spread, picks, labels, count=count).tolist()

    assert given([1, 3], [7, 5], 1) == [-1, 7, -1, 5, -1, -1]
    assert given([1, 3], [7, 5], 2) == [-1, 7, 7, 5, 5, -1]
    assert given([1, 3], [7, 5], 20) == [7, 7, 7, 5, 5, -1]
    # Two picks of one cluster: each its own label, the others that of the first.
    assert given([1, 3, 2], [7, 5, 6], 20) == [7, 7, 6, 5, 5, -1]
    assert given([1, 3, 0], [7, 5, 6], 1) == [6, 7, -1, 5, -1, -1]
    with pytest.raises(InputError, match="NUM_PSEUDO_LABELS_PER_CLUSTER is 0; choose at least 1"):
        given([1], [7], 0)


def test_pseudo_labels_equal_the_slow_form():
    random = np.random.RandomState(1)
    for _ in range(30):
        n = random.randint(2, 50)
        clusters, spread = random.randint(8, size=n), random.randint(6, size=n) / 4
        picks = best_of_clusters(
            torch.from_numpy(clusters), torch.from_numpy(-spread), random.randint(1, n + 1)
        )
        labels, count = torch.from_numpy(random.randint(5, size=len(picks))), random.randint(1, 9)
        found = pseudo_labels(
            torch.from_numpy(clusters), torch.from_numpy(spread), picks, labels, count=count
        )
        slow = slow_pseudo_labels(
            clusters.tolist(), spread.tolist(), picks.tolist(), labels.tolist(), count
        )
        assert found.tolist() == slow
        assert torch.equal(found[picks], labels)


def test_every_image_is_its_own_first_neighbour():
    indices = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 3], [2, 0, 3]])
    expected = [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 2, 0]]
    assert itself_first(indices).tolist() == expected
    # Ten copies of one point and some others: among the five nearest by index a copy may lack
    # itself.
    points = torch.cat([torch.zeros(10, 3), torch.randn(6, 3).add(5)])
    found = itself_first(find_neighbors(points, 5).indices)
    assert found[:, 0].tolist() == list(range(16))
    assert all(len(set(row)) == 5 for row in found.tolist())
    assert (found[:10] < 10).all()


def test_partners_are_neighbours_each_as_likely_as_another():
    neighbors = torch.arange(3000)[:, None] * 10 + torch.arange(7)
    images = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    drawn = []
    for epoch in range(10):
        partners = one_of(neighbors, images, seed=4, epoch=epoch, view=2)
        assert torch.equal(partners // 10, images)
        u = uniform(images, 1, seed=4, epoch=epoch, view=2)[:, 0].tolist()
        assert (partners % 10).tolist() == [int(x * 7) for x in u]
        drawn.append(partners % 10)
        alone = one_of(neighbors, images[5:8], seed=4, epoch=epoch, view=2)
        assert torch.equal(alone, partners[5:8])
    counts = torch.bincount(torch.cat(drawn), minlength=7).double()
    expected = 30_000 / 7
    # Chi-squared of 6 degrees of freedom: above 22.5 once in a thousand draws.
    assert (((counts - expected) ** 2) / expected).sum() < 22.5
    pairs = torch.bincount(drawn[0] * 7 + drawn[1], minlength=49).double()
    assert (((pairs - 3000 / 49) ** 2) / (3000 / 49)).sum() < 84


def test_summary_of_clusters_by_hand():
    clusters, labels = np.array([0, 0, 1, 1, 1, 3]), np.array([0, 1, 1, 1, 0, 0])
    confidence = np.array([0.9, 0.95, 0.96, 1.0, 0.5, 0.99])
    share = np.array([0.25, 0.5, 0.0, 0.25, 0.0])
    found = cluster_summary(clusters, confidence, share, threshold=0.95)
    assert found == {
        "live": 3, "largest": 3, "smallest": 0, "above": 0.5,
        "confidence": pytest.approx(5.3 / 6), "entropy": pytest.approx(1.5 * math.log(2)),
    }  # fmt: skip
    more = cluster_summary(clusters, confidence, share, threshold=0.95, labels=labels)
    assert {k: more[k] for k in found} == found
    assert more["macc"] == pytest.approx(100 * (1 + 2 + 1) / 6)

    table = np.array([[1, 1], [1, 2], [1, 0]])

    def entropy(counts):
        p = counts[counts > 0] / counts.sum()
        return -(p * np.log(p)).sum()

    rows, columns = table.sum(1), table.sum(0)
    shared = entropy(rows) + entropy(columns) - entropy(table.ravel())
    assert more["nmi"] == pytest.approx(2 * shared / (entropy(rows) + entropy(columns)))

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    chance = pairs(rows) * pairs(columns) / 15
    best = (pairs(rows) + pairs(columns)) / 2
    assert more["ari"] == pytest.approx((pairs(table) - chance) / (best - chance))


def test_summary_of_clusters_equals_scikit_learn():
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    random = np.random.RandomState(2)
    clusters, labels = random.randint(9, size=200), random.randint(4, size=200)
    found = cluster_summary(
        clusters, random.rand(200), np.full(10, 0.1), threshold=0.5, labels=labels
    )
    majority = sum(np.bincount(labels[clusters == c]).max() for c in range(9))
    assert found["macc"] == pytest.approx(majority / 2)
    assert found["nmi"] == pytest.approx(normalized_mutual_info_score(labels, clusters))
    assert found["ari"] == pytest.approx(adjusted_rand_score(labels, clusters))


def test_what_is_watched_is_what_the_heads_predict():
    training = Training()
    network = training.network.eval()
    found = training.watch(network)
    with torch.no_grad():
        p = network(training.views.standard(torch.arange(48))).double().softmax(dim=2)
    for head in range(HEADS):
        clusters, confidence = p[:, head].argmax(dim=1), p[:, head].amax(dim=1)
        share = p[:, head].mean(dim=0)
        assert found[f"live/{head}"] == len(clusters.unique())
        assert found[f"largest/{head}"] == torch.bincount(clusters).max()
        assert found[f"above/{head}"] == pytest.approx((confidence > 0.25).double().mean().item())
        assert found[f"confidence/{head}"] == pytest.approx(confidence.mean().item(), rel=1e-5)
        assert found[f"entropy/{head}"] == pytest.approx(
            -(share * share.log()).sum().item(), rel=1e-5
        )
        kept = training.watch.state_dict()[head]
        assert torch.equal(kept["predictions"], clusters) and len(kept["confidence"]) == 48
    blind = Training(labelled=False).watch(network)
    assert set(found) - set(blind) == {f"{k}/{h}" for k in ("macc", "nmi", "ari") for h in range(3)}
    assert all(found[name] == value for name, value in blind.items())


def test_dying_clusters_are_recognised_and_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("usl"), "propagate", True)
    training = Training()
    with torch.no_grad():
        for head in training.network.cluster_head:
            head.weight.zero_()
        training.network.cluster_head[0].bias.copy_(torch.tensor([9.0, 0, 0, 0, 0]))
    training.watch(training.network.eval())
    assert "head 0: only 1 of 5 clusters are alive; raise USLT_PRETRAIN.ADJUSTMENT" in caplog.text

    # Two images cannot keep three of five clusters alive.
    caplog.clear()
    two = replace(training.data, images=training.data.images[:2], labels=training.data.labels[:2])
    Watch(two, TRANSFORM, threshold=0, batch_size=2, device=CPU)(training.network)
    assert "alive" not in caplog.text

    class Lopsided(nn.Module):
        def forward(self, x):
            out = torch.zeros(len(x), 1, 3)
            brightness = x.mean(dim=(1, 2, 3))
            out[..., 0] = 1
            out[brightness == brightness.max(), :, 1] = 9
            return out

    caplog.clear()
    training.watch(Lopsided())
    assert "head 0: one of 3 clusters has 45 of 48 images; raise USLT_PRETRAIN" in caplog.text


def test_names_and_shapes_are_the_released_ones():
    from usl.models.resnet_imagenet import PretextImageNet

    with torch.device("meta"):
        cifar = UsltNetwork(CifarResNet(), new_heads(512, 40, cosine=False))
        imagenet = UsltNetwork(PretextImageNet(), new_heads(128, 3000, cosine=True))
    for name, network in (("uslt_cifar10", cifar), ("uslt_imagenet", imagenet)):
        assert {k: list(v.shape) for k, v in network.state_dict().items()} == NAMES[name]


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
    assert len(content["val_predictions"]) == HEADS
    heads = load_heads(tmp_path / CHECKPOINT)
    assert type(heads[0]) is (CosineHead if imagenet else nn.Linear) and not heads.training
    for a, b in zip(heads.parameters(), training.network.cluster_head.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ema", [0.0, 0.5])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("cosine", [False, True])
def test_released_heads_load(tmp_path, ema, prefix, cosine):
    heads = new_heads(8, 6, cosine=cosine)
    weights = {f"{prefix}cluster_head.{k}": v for k, v in heads.state_dict().items()}
    doubled = {k: 2 * v for k, v in weights.items()} if ema else None
    content = {"model": weights, "ema_model": doubled, "epoch": 200}
    torch.save(content, tmp_path / "c.pth")
    found = load_heads(tmp_path / "c.pth")
    assert type(found[1]) is type(heads[1])
    torch.testing.assert_close(found[1].weight, heads[1].weight * (2 if ema else 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.clear(), "has no clustering heads; give one that usl-t_pretraining wrote"),
        (lambda w: w.update({"cluster_head.0.weight": torch.zeros(6)}), "has no clustering heads"),
        (lambda w: w.pop("cluster_head.1.bias"), "of another network; missing: cluster_head.1.b"),
        (
            lambda w: w.update({"cluster_head.2.weight": torch.zeros(7, 8)}),
            r"of another shape: cluster_head.2.weight \(7, 8\) instead of \(6, 8\)",
        ),
        (
            lambda w: w["cluster_head.0.bias"].fill_(math.nan),
            "not finite: cluster_head.0.bias",
        ),
    ],
)
def test_heads_that_do_not_fit_together(tmp_path, change, message):
    heads = new_heads(8, 6, cosine=False)
    weights = {f"cluster_head.{k}": v.clone() for k, v in heads.state_dict().items()}
    change(weights)
    torch.save({"model": weights}, tmp_path / "c.pth")
    with pytest.raises(InputError, match=message):
        load_heads(tmp_path / "c.pth")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What three epochs end with, of both forms."""
    ends = {}
    for imagenet in (False, True):
        folder = tmp_path_factory.mktemp("whole")
        Training(folder, imagenet=imagenet, ema=0.0 if imagenet else 0.5).run()
        ends[imagenet] = torch.load(folder / CHECKPOINT)
    return ends


@pytest.mark.parametrize("imagenet", [False, True])
@pytest.mark.parametrize("die_at", [1, 4, 8])
def test_killed_at_any_epoch_and_resumed(tmp_path, uninterrupted, imagenet, die_at):
    options = {"imagenet": imagenet, "ema": 0.0 if imagenet else 0.5}
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path, die_at=die_at, **options).run()
    Training(tmp_path, **options).run()
    same(uninterrupted[imagenet], torch.load(tmp_path / CHECKPOINT))


def test_labels_change_nothing_that_is_trained(uninterrupted, tmp_path):
    Training(tmp_path, labelled=False, ema=0.5).run()
    found = torch.load(tmp_path / CHECKPOINT)
    for key in ("model", "ema_model", "optimizer", "criterion_local", "val_predictions"):
        same(found[key], uninterrupted[False][key], key)


def test_a_loss_that_is_nan_keeps_the_last_good_checkpoint(tmp_path):
    with pytest.raises(InputError, match="the loss is nan before step 6; the last good checkpoint"):
        Training(tmp_path, spoil_at=4).run()
    kept = torch.load(tmp_path / CHECKPOINT)
    assert kept["step"] == 3 and all(torch.isfinite(v).all() for v in kept["model"].values())


def test_a_checkpoint_within_an_epoch_is_never_of_a_nan(tmp_path):
    with pytest.raises(InputError, match="the loss is nan before step 2; the last good checkpoint"):
        Training(tmp_path, spoil_at=1, save_every=1).run()
    kept = torch.load(tmp_path / CHECKPOINT)
    assert kept["step"] == 1 and all(torch.isfinite(v).all() for v in kept["model"].values())


WORKER = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from test_uslt import outcomes
from usl import distributed
with distributed.processes(torch.device("cpu")):
    results = outcomes()
    if distributed.is_first():
        print("RESULT " + json.dumps(results))
"""


def outcomes():
    """Metrics, and the first of all weights and averages after an epoch, of both forms."""
    results = []
    for imagenet in (False, True):
        training = Training(imagenet=imagenet, epochs=1)
        trained = training.run()
        states = (trained.network, training.local, training.whole)
        values = chain.from_iterable(state.state_dict().items() for state in states)
        first = {name: value.double().flatten()[:50].tolist() for name, value in values}
        row = trained.metrics.drop(columns="images_per_second").iloc[-1].to_dict()
        results.append([row, first])
    return results


def test_two_processes_nearly_equal_one(tmp_path):
    # Images, views, partners, masks and counts are the same, and each process computes the losses
    # of the whole batch. Batch norm and the gradients add up in another order (float32), and later
    # steps enlarge that: measured 6e-7 on weights and averages, 0 where the backbone is frozen.
    # Adam divides by the size of the gradient, so where that is nearly 0 more can come of it.
    code = WORKER.format(tests=str(ROOT / "tests"))
    both = in_processes(tmp_path / "worker.py", code, 2)
    for (two_row, two), (one_row, one) in zip(both, outcomes(), strict=True):
        assert two_row == pytest.approx(one_row, rel=1e-5)
        for name, values in one.items():
            assert two[name] == pytest.approx(values, rel=1e-4, abs=1e-4), name
