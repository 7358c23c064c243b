"""One process or many under ``torchrun``, the same to the code that calls this."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn

from usl.errors import InputError


@contextmanager
def processes(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes that ``torchrun`` started, if it did; leave them in the end.

    Yields the device of this process: with CUDA, the GPU of its local rank.
    """
    if not dist.is_torchelastic_launched():
        yield device
        return
    cuda = device.type == "cuda"
    dist.init_process_group("nccl" if cuda else "gloo")
    if cuda:
        device = torch.device("cuda", dist.get_node_local_rank())
        torch.cuda.set_device(device)
    try:
        yield device
    except InputError as error:
        # The main process, which says what is wrong, may not have met it.
        if not is_main():
            print(f"process {dist.get_rank()}: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        dist.destroy_process_group()


def is_main() -> bool:
    """Whether this is the main process, rank 0; also before and after :func:`processes`."""
    return int(os.environ.get("RANK", 0)) == 0 or not dist.is_torchelastic_launched()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in the order of their ranks, (n · world, …); gradients flow back.

    A loss of all rows, computed by every process and averaged over them, then has the gradient
    that one process would find.
    """
    if world_size() == 1:
        return x
    with _quiet():
        parts: list[Tensor] = differentiable.all_gather(x.contiguous())  # type: ignore[no-untyped-call]
    return torch.cat(tuple(parts))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's advice to call functions of its own that begin with an underscore."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed.nn.functional", FutureWarning)
        yield


def from_main(*tensors: Tensor) -> None:
    """Give every process the main process's values of tensors, in place."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def mean(x: Tensor) -> Tensor:
    """Mean over the processes of a tensor that needs no gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
        x /= world_size()
    return x


def _sum(x: Tensor) -> Tensor:
    """Sum over the processes; what flows back is summed over them too."""
    with _quiet():
        total: Tensor = differentiable.all_reduce(x)  # type: ignore[no-untyped-call]
    return total


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes, on any device; torch's needs CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C, H, W); statistics over the batches of all processes in training."""
        if not self.training:
            return super().forward(x)
        # Autocast may have made half-precision input; running statistics are float32.
        wide = x if x.dtype.itemsize >= 4 else x.float()
        moments = torch.stack([wide.mean(dim=(0, 2, 3)), (wide * wide).mean(dim=(0, 2, 3))])
        middle, square = (_sum(moments) / world_size()).unbind()
        variance = (square - middle * middle).clamp_min(0)
        count = world_size() * x.numel() // x.shape[1]
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None and self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(middle, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        factor = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - middle * factor
        out: Tensor = (wide * factor[:, None, None] + shift[:, None, None]).to(x.dtype)
        return out


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """Make a network train over all processes: gradients averaged, batch norm shared."""
    if world_size() == 1:
        return network
    if device.type == "cuda":
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index])
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _SharedBatchNorm
    return nn.parallel.DistributedDataParallel(network)
