"""Losses against slow oracles; the loop: schedules, averages, resume, failures, processes."""

import logging
import math
import sys
import types
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from conftest import ROOT, in_processes
from torch import nn
from usl.data.augment import MocoChain
from usl.data.views import Views
from usl.models.encoders import load_encoder, new_network, save_encoder

from usl import InputError
from usl.data.datasets import ImageDataset, open_dataset
from usl.metrics import alignment, effective_rank, uniformity, weighted_knn
from usl.models.resnet_cifar import CldEncoder, PretextEncoder
from usl.training.contrastive import cross_level, groups, nt_xent
from usl.training.loop import CHECKPOINT, Plan, fit
from usl.training.pretraining import Contrast, Embedding, contrastive_step, monitor

CPU = torch.device("cpu")


def unit(n, d, seed):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.functional.normalize(x).requires_grad_()


def slow_nt_xent(z, other, temperature):
    rows = [*z, *other]
    n, total = len(z), 0.0
    for i in range(2 * n):
        pair = (i + n) % (2 * n)
        below = sum(torch.exp(rows[i] @ rows[j] / temperature) for j in range(2 * n) if j != i)
        total = total - torch.log(torch.exp(rows[i] @ rows[pair] / temperature) / below)
    return total / (2 * n)


def slow_cross_level(z, other, temperature, grouped, other_grouped):
    total = 0.0
    for mine, (labels, centroids) in ((z, other_grouped), (other, grouped)):
        for i in range(len(mine)):
            scores = [torch.exp(mine[i] @ c / temperature) for c in centroids]
            total = total - torch.log(scores[labels[i]] / sum(scores))
    return total / (2 * len(z))


def equal_with_gradients(fast, slow, inputs):
    values, gradients = [], []
    for f in (fast, slow):
        values.append(f())
        gradients.append(torch.autograd.grad(values[-1], inputs))
    torch.testing.assert_close(values[0], values[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_oracle(temperature):
    z, other = unit(7, 5, 0), unit(7, 5, 1)
    equal_with_gradients(
        lambda: nt_xent(z, other, temperature),
        lambda: slow_nt_xent(z, other, temperature),
        [z, other],
    )


def test_cross_level_equals_the_oracle():
    z, other = unit(20, 6, 2), unit(20, 6, 3)
    grouped, other_grouped = groups(z, 4, seed=0), groups(other, 4, seed=0)
    equal_with_gradients(
        lambda: cross_level(z, other, 0.2, grouped, other_grouped),
        lambda: slow_cross_level(z, other, 0.2, grouped, other_grouped),
        [z, other],
    )


def test_groups_are_k_means_with_centroids_of_length_1():
    z = unit(30, 4, 5)
    labels, centroids = groups(z, 5, seed=1)
    assert len(labels.unique()) == 5 and not centroids.requires_grad
    for c in range(5):
        mean = z[labels == c].detach().mean(0)
        torch.testing.assert_close(centroids[c], mean / mean.norm(), atol=1e-6, rtol=1e-6)


def test_each_loss_falls_under_plain_gradient_steps():
    def fall(loss, *inputs):
        values = []
        for _ in range(30):
            value = loss(*(nn.functional.normalize(x) for x in inputs))
            values.append(value.item())
            for x, g in zip(inputs, torch.autograd.grad(value, inputs), strict=True):
                x.data -= 0.5 * g
        return values

    z, other = unit(16, 8, 0), unit(16, 8, 1)
    values = fall(lambda a, b: nt_xent(a, b, 0.5), z, other)
    assert all(b < a for a, b in pairwise(values))
    z, other = unit(16, 8, 2), unit(16, 8, 3)
    grouped, other_grouped = groups(z, 4, 0), groups(other, 4, 0)
    values = fall(lambda a, b: cross_level(a, b, 0.5, grouped, other_grouped), z, other)
    assert all(b < a for a, b in pairwise(values))


def test_monitors_by_hand():
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    other = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert alignment(z, other) == pytest.approx((0 + 2 + 4) / 3)
    expected = math.log((2 * math.exp(-2 * 2) + math.exp(-2 * 4)) / 3)
    assert uniformity(z) == pytest.approx(expected)
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(other) == pytest.approx(1)
    assert uniformity(other) == pytest.approx(0)


def test_weighted_knn_equals_the_slow_form():
    train, test = unit(60, 5, 0).detach().float(), unit(25, 5, 1).detach().float()
    labels = torch.arange(60) % 4
    answers = torch.arange(25) % 4
    right = 0
    for i in range(25):
        s = train @ test[i]
        votes = [0.0] * 4
        for j in s.argsort(descending=True)[:7].tolist():
            votes[labels[j]] += math.exp(float(s[j]) / 0.07)
        right += votes.index(max(votes)) == answers[i]
    assert weighted_knn(train, labels, test, answers, k=7) == pytest.approx(100 * right / 25)
    longer = weighted_knn(train * torch.rand(60, 1).add(0.5), labels, test * 3, answers, k=7)
    assert longer == pytest.approx(100 * right / 25)


def test_schedules():
    plan = Plan(epochs=1, batch_size=2, lr=1.0, warmup=4)
    assert [plan.factor(s, 104) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert plan.factor(4, 104) == 1.0
    assert plan.factor(54, 104) == pytest.approx(0.5)
    assert plan.factor(104, 104) == pytest.approx(0.0)
    assert Plan(epochs=1, batch_size=2, lr=1.0, schedule="constant").factor(70, 104) == 1.0


class Toy:
    """A regression that is small enough to be followed by hand."""

    def __init__(self, tmp_path=None, *, die_at=None, spoil_at=None, **plan):
        torch.manual_seed(0)
        self.network = nn.Linear(3, 1)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=1.0, momentum=0.9)
        self.plan = Plan(**({"epochs": 3, "batch_size": 4, "lr": 0.05, "seed": 7} | plan))
        self.x = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
        self.folder, self.die_at, self.spoil_at = tmp_path, die_at, spoil_at
        self.seen, self.rates = [], []

    def make(self, network):
        def step(images, epoch, number):
            if number == self.die_at:
                raise KeyboardInterrupt
            self.seen.append(images.tolist())
            self.rates.append(self.optimizer.param_groups[0]["lr"])
            loss = (network(self.x[images])[:, 0] - self.x[images].sum(1)).pow(2).mean()
            return loss * (math.nan if number == self.spoil_at else 1), {"half": loss / 2}

        return step

    def run(self, **options):
        return fit(
            self.network, self.make, self.optimizer, self.plan,
            images=22, device=CPU, folder=self.folder, **options,
        )  # fmt: skip

    def weights(self):
        return torch.cat([p.detach().flatten() for p in self.network.parameters()])


def test_an_epoch_visits_images_once_and_drops_the_last_batch():
    toy = Toy()
    toy.run()
    assert len(toy.seen) == 15
    for epoch in range(3):
        visited = list(chain.from_iterable(toy.seen[5 * epoch : 5 * epoch + 5]))
        assert len(set(visited)) == 20
    assert toy.seen[:5] != toy.seen[5:10]


def test_the_loop_equals_one_written_out():
    toy, other = Toy(warmup=2), Toy(warmup=2)
    toy.run()
    for number, batch in enumerate(toy.seen):
        other.optimizer.zero_grad()
        loss, _ = other.make(other.network)(torch.tensor(batch), 0, number)
        loss.backward()
        other.optimizer.param_groups[0]["lr"] = 0.05 * other.plan.factor(number, 15)
        other.optimizer.step()
    assert torch.equal(toy.weights(), other.weights())
    assert toy.rates == [pytest.approx(0.05 * toy.plan.factor(s, 15)) for s in range(15)]


def test_metrics_are_means_over_the_epoch(tmp_path):
    toy = Toy(tmp_path, schedule="constant", lr=1e-12)
    rows = toy.run(evaluate=lambda network: {"answer": 42.0}).metrics
    x = toy.x[torch.tensor(toy.seen[0:5])]
    loss = (toy.network(x)[..., 0] - x.sum(2)).pow(2).mean()
    assert rows["loss"][0] == pytest.approx(loss.item(), rel=1e-5)
    assert rows["half"][0] == pytest.approx(loss.item() / 2, rel=1e-5)
    assert rows["answer"].tolist() == [42.0] * 3 and rows["step"].tolist() == [5, 10, 15]
    written = (tmp_path / "metrics.csv").read_text()
    assert len(written.splitlines()) == 4
    # Killed between the last checkpoint and this file: the same command completes it.
    (tmp_path / "metrics.csv").unlink()
    toy.run()
    assert (tmp_path / "metrics.csv").read_text() == written


def test_tensorboard_gets_every_number_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder):
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def close(self):
            written.append("closed")

    module = types.ModuleType("tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    metrics = Toy(tmp_path).run(evaluate=lambda network: {"answer": 42.0}).metrics
    rows = metrics.to_dict("records")
    assert written == [(k, v, row["step"]) for row in rows for k, v in row.items()] + ["closed"]


def test_steps_instead_of_epochs():
    toy = Toy(steps=7)
    assert toy.run().metrics["step"].tolist() == [5, 7] and len(toy.seen) == 7


def test_accumulation_adds_up_to_the_whole_batch():
    whole, parts = Toy(), Toy(accumulate=2)
    a, b = whole.run(), parts.run()
    torch.testing.assert_close(whole.weights(), parts.weights())
    torch.testing.assert_close(a.metrics["loss"].tolist(), b.metrics["loss"].tolist())


def test_the_weight_average():
    toy, other = Toy(ema=0.8, steps=3), Toy(steps=3)
    trained = toy.run()
    average = other.weights()
    other.plan = Plan(epochs=3, batch_size=4, lr=0.05, seed=7, steps=3)
    history = []
    make = other.make

    def watching(network):
        step = make(network)

        def watched(*args):
            history.append(other.weights())
            return step(*args)

        return watched

    other.make = watching
    other.run()
    for weights in [*history[1:], other.weights()]:
        average = 0.8 * average + 0.2 * weights
    found = torch.cat([p.detach().flatten() for p in trained.network.parameters()])
    torch.testing.assert_close(found, average)


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


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"batch_size": 1}, "BATCH_SIZE is 1; choose 2 to 22"),
        ({"batch_size": 23}, "BATCH_SIZE is 23; choose 2 to 22"),
        ({"batch_size": 4, "accumulate": 3}, "a batch of 4 cannot be cut into 3 parts"),
        ({"batch_size": 4, "accumulate": 4}, "cannot be cut into 4 parts of at least 2"),
        ({"epochs": 0}, "0 epochs and 0 steps"),
        ({"schedule": "zigzag"}, "unknown SCHEDULE 'zigzag'"),
        ({"precision": "int4"}, "unknown precision 'int4'; choose one of float32"),
        ({"ema": 1.0}, "an EMA decay of 1.0"),
        ({"evaluate_every": 0}, "EVALUATE_EVERY is 0"),
        ({"save_every": -1}, "CHECKPOINT_STEPS -1"),
        ({"warmup": -1}, "WARMUP_EPOCHS makes -1 steps"),
        ({"lr": 0.0}, "OPTIMIZER.LR is 0.0"),
        ({"lr": math.nan}, "OPTIMIZER.LR is nan"),
    ],
)
def test_impossible_plans(plan, message):
    with pytest.raises(InputError, match=message):
        Toy(**plan).run()


def tiny_images(n=48, channels=3):
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (n, 32, 32, channels)).astype(np.uint8)
    return ImageDataset("tiny", "train", images, random.randint(3, size=n), ("a", "b", "c"))


def pretrain(folder, *, cld=False, die_at=None, backend="auto", epochs=2, precision="float32"):
    data = tiny_images()
    torch.manual_seed(0)
    network = new_network("SmallResNet", 2, 10, cld=cld)
    views = Views(data, "digits", seed=5, device=CPU, backend=backend)
    make = contrastive_step(views, MocoChain(), Contrast(cld=cld, groups=4), seed=5)

    def dying(network):
        step = make(network)

        def dies(images, epoch, number):
            if number == die_at:
                raise KeyboardInterrupt
            return step(images, epoch, number)

        return dies

    return fit(
        network, dying, torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        Plan(epochs=epochs, batch_size=16, lr=0.1, seed=5, precision=precision),
        images=48, device=CPU, folder=folder,
        evaluate=monitor(data, data, views, MocoChain(), batch_size=16),
    )  # fmt: skip


@pytest.mark.parametrize("cld", [False, True])
def test_pretraining_killed_and_resumed(tmp_path, cld):
    whole = pretrain(None, cld=cld)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, cld=cld, die_at=4)
    rest = pretrain(tmp_path, cld=cld)
    for (name, a), b in zip(
        whole.network.state_dict().items(), rest.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    same = [c for c in whole.metrics if c != "images_per_second"]
    assert whole.metrics[same].equals(rest.metrics[same])
    assert {"alignment", "uniformity", "effective_rank", "knn_accuracy/backbone"} <= set(same)


@pytest.mark.parametrize("cld", [False, True])
def test_what_pretraining_writes_is_what_selection_reads(tmp_path, cld):
    network = pretrain(None, cld=cld, epochs=1).network
    save_encoder(tmp_path / "encoder.pth", network, cld=cld)
    encoder = load_encoder(tmp_path / "encoder.pth", "SmallResNet", backbone_dim=64)
    assert type(encoder) is (CldEncoder if cld else PretextEncoder)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(encoder(x), Embedding(network)(x))
    with pytest.raises(InputError, match="of another network"):
        load_encoder(tmp_path / "encoder.pth", "ResNet18")
    with pytest.raises(InputError, match="MODEL.ARCH 'banana' has no checkpoints"):
        load_encoder(tmp_path / "encoder.pth", "banana")
    before = load_encoder(tmp_path / "encoder.pth", "SmallResNet", output="backbone")
    torch.testing.assert_close(before(x), nn.functional.normalize(network.features(x)))
    with pytest.raises(InputError, match="unknown MODEL.FEATURES 'tail'; choose head or backbone"):
        load_encoder(tmp_path / "encoder.pth", "SmallResNet", output="tail")


def test_half_precision_weights_load(tmp_path):
    network = new_network("SmallResNet", 2, 10, cld=False)
    save_encoder(tmp_path / "e.pth", network, cld=False, half=True)
    encoder = load_encoder(tmp_path / "e.pth", "SmallResNet")
    for a, b in zip(encoder.parameters(), network.parameters(), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b.half().float())


def test_bfloat16_trains():
    assert math.isfinite(pretrain(None, precision="bfloat16").metrics["loss"].iloc[-1])


def test_pil_and_batched_views_are_nearly_the_same():
    data = tiny_images()
    chain = MocoChain(hue=0.0)
    images = torch.arange(48)
    fast, slow = (
        Views(data, "digits", seed=1, device=CPU, backend=backend)(chain, images, 0, 1)
        for backend in ("batched", "pil")
    )
    assert fast.shape == slow.shape == (48, 3, 32, 32)
    assert (fast - slow).abs().max() < 12 / 255 / 0.3755
    with pytest.raises(InputError, match="unknown AUGMENT.BACKEND 'gimp'"):
        Views(data, "digits", seed=1, device=CPU, backend="gimp")


def test_views_of_an_image_do_not_depend_on_its_batch():
    views = Views(open_dataset("digits", ""), "digits", seed=1, device=CPU)
    together = views(MocoChain(), torch.arange(30), 2, 0)
    torch.testing.assert_close(together[7:9], views(MocoChain(), torch.tensor([7, 8]), 2, 0))


def test_collapse_is_recognised_and_said(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("usl"), "propagate", True)

    class Point(nn.Module):
        dim = 8

        def forward(self, x):
            return nn.functional.normalize(torch.ones(len(x), 8))

    data = tiny_images()
    views = Views(data, "digits", seed=1, device=CPU)
    found = monitor(data, None, views, MocoChain(), batch_size=16)(Point())
    assert "the features have collapsed" in caplog.text
    assert "knn_accuracy/head" not in found and found["effective_rank"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("arch", "width", "depth", "message"),
    [
        ("AlexNet", 16, 10, "unknown MODEL.ARCH 'AlexNet'; choose one of ResNet18, SmallResNet"),
        ("SmallResNet", 0, 10, "MODEL.WIDTH is 0"),
        ("SmallResNet", 16, 9, "MODEL.DEPTH is 9; choose 10, 18, 26"),
        ("SmallResNet", 16, 2, "MODEL.DEPTH is 2"),
    ],
)
def test_networks_that_are_none(arch, width, depth, message):
    with pytest.raises(InputError, match=message):
        new_network(arch, width, depth, cld=False)


def test_impossible_contrasts():
    with pytest.raises(InputError, match="GROUP.COUNT is 32; choose 2 to 16, the batch"):
        Contrast(cld=True).check(16)
    with pytest.raises(InputError, match="TEMPERATURE"):
        Contrast(temperature=0.0).check(16)


WORKER = """
import json, sys, torch
sys.path.insert(0, {tests!r})
from test_training import pretrain
from usl import distributed
with distributed.processes(torch.device("cpu")):
    trained = pretrain(None, cld={cld}, epochs=1)
    if distributed.is_first():
        state = trained.network.state_dict()
        weights = {{k: v.double().flatten()[:50].tolist() for k, v in state.items()}}
        print("RESULT " + json.dumps([trained.metrics["loss"].tolist(), weights]))
"""


@pytest.mark.parametrize("cld", [False, True])
def test_two_processes_nearly_equal_one(tmp_path, cld):
    # Not exactly: sums over the batch are added in another order (float32), in batch norm and in
    # the gradients, and later steps enlarge that. Images, views, negatives and groups are the same.
    code = WORKER.format(tests=str(ROOT / "tests"), cld=cld)
    results = [in_processes(tmp_path / "worker.py", code, count) for count in (1, 2)]
    (one_loss, one), (two_loss, two) = results
    assert two_loss == pytest.approx(one_loss, rel=1e-5)
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=1e-3, abs=1e-3), name
