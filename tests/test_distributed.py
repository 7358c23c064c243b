"""Several processes: batch norm that they share, and an error that only one of them meets."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from usl import distributed


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
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [*launcher, "2", tmp_path / "one_fails.py"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "process 1: the file is not on this machine" in done.stderr.splitlines()
