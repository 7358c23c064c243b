"""The loop: schedules, averages, accumulation, metrics, impossible plans."""

import math
import sys
import types
from itertools import chain

import pytest
import torch
from toys.loop import Toy

from usl import InputError
from usl.training.loop import Plan


def test_schedules():
    plan = Plan(epochs=1, batch_size=2, lr=1.0, warmup=4)
    assert [plan.factor(s, 104) for s in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert plan.factor(4, 104) == 1.0
    assert plan.factor(54, 104) == pytest.approx(0.5)
    assert plan.factor(104, 104) == pytest.approx(0.0)
    assert Plan(epochs=1, batch_size=2, lr=1.0, schedule="constant").factor(70, 104) == 1.0
    # Four epochs of three steps, one of warm-up: the cosine falls between epochs only.
    plan = Plan(epochs=4, batch_size=2, lr=1.0, warmup=3, schedule="epoch-cosine")
    found = [plan.factor(step, 12, per_epoch=3) for step in range(12)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1] + [1] * 3 + [0.75] * 3 + [0.25] * 3)


def test_epochs_that_count_as_done():
    toy, other = Toy(start=1), Toy()
    rows = toy.run().metrics
    other.run()
    assert toy.seen == other.seen[5:] and rows["epoch"].tolist() == [2, 3]
    assert toy.rates == other.rates[5:]
    for start in (-1, 3):
        with pytest.raises(InputError, match=f"`start_epoch` is {start}; choose 0 to 2"):
            Toy(start=start).run()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_step_and_the_next_are_prepared(accumulate):
    toy, prepared = Toy(accumulate=accumulate, stop=8), []

    def prepare(images, epoch, step):
        prepared.append((len(toy.seen) // accumulate, images.tolist(), epoch, step))

    toy.run(prepare=prepare)
    for step in range(8):
        of_step = [p for p in prepared if p[3] == step]
        # Before itself and before the step before, with what it then sees.
        assert {p[0] for p in of_step} == {max(0, step - 1), step}
        seen = toy.seen[step * accumulate : (step + 1) * accumulate]
        assert all(p[1] in seen and p[2] == step // 5 for p in of_step)
    assert max(p[3] for p in prepared) == 7


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
        ({"evaluate_every": 0}, "`evaluate_every` is 0 epochs; choose 1 or more"),
        ({"save_every": -1}, "`save_every` is -1 steps; choose 0 or more"),
        ({"warmup": -1}, "`warmup` is -1 steps"),
        ({"lr": 0.0}, "`lr` is 0.0"),
        ({"lr": math.nan}, "`lr` is nan"),
    ],
)
def test_impossible_plans(plan, message):
    with pytest.raises(InputError, match=message):
        Toy(**plan).run()
