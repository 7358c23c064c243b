"""The loop: schedules, averages, resume, failures."""

import math
import sys
import types
from itertools import chain

import pytest
import torch
from helpers import CPU
from torch import nn

from usl import InputError
from usl.training.loop import CHECKPOINT, Plan, fit


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
        ({"batch_size": 1}, "`batch_size` is 1; choose 2 to 22"),
        ({"batch_size": 23}, "`batch_size` is 23; choose 2 to 22"),
        ({"batch_size": 4, "accumulate": 3}, "`batch_size` is 4, which cannot be cut into 3 parts"),
        ({"batch_size": 4, "accumulate": 4}, "cannot be cut into 4 parts of at least 2"),
        ({"epochs": 0}, "`epochs` is 0 and `steps` 0"),
        ({"schedule": "zigzag"}, "unknown `schedule` 'zigzag'"),
        ({"precision": "int4"}, "unknown `precision` 'int4'; choose one of float32"),
        ({"ema": 1.0}, "`ema` is 1.0"),
        ({"evaluate_every": 0}, "`evaluate_every` is 0"),
        ({"save_every": -1}, "`save_every` -1"),
        ({"warmup": -1}, "`warmup` is -1 steps"),
        ({"lr": 0.0}, "`lr` is 0.0"),
        ({"lr": math.nan}, "`lr` is nan"),
    ],
)
def test_impossible_plans(plan, message):
    with pytest.raises(InputError, match=message):
        Toy(**plan).run()
