"""Several processes: batch norm that they share, and an error that only one of them meets."""

import socket

import pytest
import torch
import torch.distributed as dist
from helpers import CPU, in_processes, torchrun
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from toys.norms import norms_together

from usl import InputError, distributed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_batch_norm_is_batch_norm(tmp_path, dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4).to(dtype)
    plain, shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    shared.__class__ = distributed._SharedBatchNorm
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        out = shared(x)
    finally:
        dist.destroy_process_group()
    expected = plain(x.float())
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), expected, atol=0.02 if dtype != torch.float32 else 1e-5, rtol=1e-2
    )
    for name in ("running_mean", "running_var"):
        assert getattr(shared, name).dtype == torch.float32
        torch.testing.assert_close(getattr(shared, name), getattr(plain, name))


def shared_alone(tmp_path, norm, x):
    """What a norm that is shared makes in a world of one."""
    norm.__class__ = distributed._SharedBatchNorm
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        return norm.train()(x), norm.eval()(x)
    finally:
        dist.destroy_process_group()


def test_norms_of_vectors_and_of_timm_are_shared(tmp_path):
    torch.manual_seed(0)
    for number, (build, shape) in enumerate(
        ((nn.BatchNorm1d, (6, 3)), (lambda n: BatchNormAct2d(n, act_layer=nn.SiLU), (6, 3, 4, 4)))
    ):
        plain, shared, x = build(3), build(3), torch.randn(shape)
        folder = tmp_path / str(number)
        folder.mkdir()
        training, tested = shared_alone(folder, shared, x)
        torch.testing.assert_close(training, plain.train()(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(tested, plain.eval()(x), atol=1e-5, rtol=1e-5)
        assert shared.num_batches_tracked == plain.num_batches_tracked == 1


@pytest.mark.slow
def test_norms_over_two_processes_or_alone_and_what_is_tested_then(tmp_path):
    shared, alone, (one, two) = in_processes(tmp_path / "two.py", 2, norms_together)
    assert shared[0] == ["_SharedBatchNorm"] * 2 and alone[0] == ["BatchNorm2d", "BatchNorm1d"]
    # A tenth of the way to the mean of both batches, 53.5, or of the first alone, 3.5.
    assert shared[1] == pytest.approx([5.35] * 2) and alone[1] == pytest.approx([0.35] * 2)
    # Tested twice in two epochs, the network and its average: what both processes have.
    assert one == two and len(one) == 4 and one[0] != one[2]


def test_more_processes_than_gpus_and_backends_that_are_not_there(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(InputError, match="4 processes and 2 GPUs on this machine; start at most"),
        distributed.processes(cuda),
    ):
        raise AssertionError
    for device, name, known in ((CPU, "nccl", "gloo on a CPU"), (cuda, "mpi", "nccl or gloo")):
        with (
            pytest.raises(InputError, match=f"`dist_backend` is '{name}'; choose {known}"),
            distributed.processes(device, backend=name),
        ):
            raise AssertionError


def test_norms_on_gpus_are_torchs_or_timms(monkeypatch):
    # No GPU is needed to see what is handed to the parallel network.
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        nn.parallel, "DistributedDataParallel", lambda network, device_ids: (network, device_ids)
    )
    for build, shared, expected in (
        (nn.BatchNorm2d, True, nn.SyncBatchNorm),
        (nn.BatchNorm2d, False, nn.BatchNorm2d),
        (lambda n: BatchNormAct2d(n, act_layer=nn.SiLU), True, SyncBatchNormAct),
    ):
        network = nn.Sequential(nn.Conv2d(3, 4, 1), build(4))
        torch.nn.init.uniform_(network[1].weight)
        weight = network[1].weight.clone()
        found, devices = distributed.parallel(network, torch.device("cuda", 1), shared_norms=shared)
        assert type(found[1]) is expected and devices == [1]
        assert torch.equal(found[1].weight, weight)
        if expected is SyncBatchNormAct:
            assert isinstance(found[1].act, nn.SiLU)


def test_where_processes_cannot_meet(tmp_path):
    def launch(**options):
        options = {"address": "tcp://localhost:10001", "nodes": 2, "node": 0} | options
        distributed.launch([str(tmp_path / "none.py")], per_node=1, **options)

    with pytest.raises(InputError, match="`node` is 2 of `nodes` 2; choose 0 to 1"):
        launch(node=2)
    for address in ("localhost:10001", "tcp://localhost", "env://", "tcp://localhost:99999"):
        with pytest.raises(InputError, match=f"`address` is '{address}'; give one such as tcp://"):
            launch(address=address)
    with pytest.raises(
        InputError, match="`address` is 'tcp://no.such.host.invalid:1': .*; give an"
    ):
        launch(address="tcp://no.such.host.invalid:1")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of `address` is in use; choose another"):
            launch(address=f"tcp://localhost:{port}")


ONE_FAILS = """
import torch
from usl import InputError, distributed
from usl.cli import cli

def main():
    with distributed.processes(torch.device("cpu")):
        if distributed.rank() == 1:
            raise InputError("the file is not on this machine")
        torch.distributed.barrier()

cli(main)
"""


@pytest.mark.slow
def test_an_error_of_one_process_is_said(tmp_path):
    (tmp_path / "one_fails.py").write_text(ONE_FAILS)
    done = torchrun(2, tmp_path / "one_fails.py")
    assert done.returncode != 0
    assert "process 1: the file is not on this machine" in done.stderr.splitlines()
