"""FixMatch in bfloat16, compiled, and in several processes."""

import copy

import pytest
import torch
from helpers import in_processes
from toys.fixmatch import batches_of, outcome, outcomes, small, tiny_views, train

from usl import InputError, distributed
from usl.training.fixmatch import FixMatch, fixmatch_step


def test_bfloat16_trains():
    losses = [train(precision=p, steps=1).metrics["loss"][0] for p in ("bfloat16", "float32")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.slow
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
        step = fixmatch_step(batches_of(views, steps=2))(small())
        for number in range(4):
            places = torch.arange(12).chunk(world)[rank]
            step(places, number // 2, number)
        return views.calls

    one, first, second = asked(1, 0), asked(2, 0), asked(2, 1)
    for whole, a, b in zip(one, first, second, strict=True):
        assert (a[1] + b[1], a[2] + b[2]) == (whole[1], whole[2])
    FixMatch(labelled=4).check_processes()
    with pytest.raises(InputError, match="`batch_size` is 3; choose a multiple of 2, the"):
        FixMatch(labelled=3).check_processes()


@pytest.mark.slow
def test_two_processes_nearly_equal_one(tmp_path):
    both = in_processes(tmp_path / "worker.py", 2, outcomes)
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
