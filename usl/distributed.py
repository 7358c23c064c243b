"""One process or many under ``torchrun``, the same to the code that calls this."""

from __future__ import annotations

import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from usl.errors import InputError


@contextmanager
def processes(device: torch.device, *, backend: str = "") -> Iterator[torch.device]:
    """Join the other processes that ``torchrun`` started, if it did; leave them in the end.

    Yields the device of this process: with CUDA, the GPU of its local rank.

    Parameters
    ----------
    device : torch.device
    backend : {"", "nccl", "gloo"}
        Empty: nccl with CUDA, else gloo.

    Raises
    ------
    InputError
        More processes than GPUs, or a backend that the device has not.
    """
    cuda = device.type == "cuda"
    if backend not in (("", "nccl", "gloo") if cuda else ("", "gloo")):
        raise InputError(
            f"`dist_backend` is {backend!r}; choose {'nccl or gloo' if cuda else 'gloo on a CPU'}"
        )
    if not dist.is_torchelastic_launched():
        yield device
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if cuda and here > torch.cuda.device_count():
        raise InputError(
            f"{here} processes and {torch.cuda.device_count()} GPUs on this machine; start at most "
            "one process a GPU, or set `device` cpu"
        )
    dist.init_process_group(backend or ("nccl" if cuda else "gloo"))
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


def launch(command: Sequence[str], *, address: str, nodes: int, node: int, per_node: int) -> None:
    """Run a Python script in many processes, as ``torchrun`` does, and wait for them.

    Parameters
    ----------
    command : sequence of str
        The script and its arguments.
    address : str
        ``tcp://host:port``, of the first node; its port must be free.
    nodes, node : int
        How many machines there are, and which of them this is, from 0.
    per_node : int
        Processes of each machine.

    Raises
    ------
    InputError
        An impossible address, number of nodes or port. Failures of the processes end this one with
        their exit code; they have said why.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_node(node, nodes)
    found = re.fullmatch(r"tcp://([^:/]+):(\d+)/?", address)
    if found is None or not 0 < int(found[2]) < 1 << 16:
        raise InputError(f"`address` is {address!r}; give one such as tcp://localhost:10001")
    try:
        socket.getaddrinfo(found[1], int(found[2]))
    except OSError as error:
        raise InputError(f"`address` is {address!r}: {error.strerror}; give another") from None
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=per_node,
        run_id="usl",
        rdzv_backend="static",
        rdzv_endpoint=f"{found[1]}:{found[2]}",
        rdzv_configs={"rank": node},
        max_restarts=0,
    )
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        sys.exit(error.get_first_failure()[1].exitcode)
    except SignalException:
        raise KeyboardInterrupt from None
    except (dist.DistNetworkError, RuntimeError) as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise InputError(f"port {found[2]} of `address` is in use; choose another") from None


def check_node(node: int, nodes: int) -> None:
    """Raise InputError unless there can be so many machines, and this one among them."""
    if nodes < 1:
        raise InputError(f"`nodes` is {nodes}; choose at least 1")
    if not 0 <= node < nodes:
        raise InputError(f"`node` is {node} of `nodes` {nodes}; choose 0 to {nodes - 1}")


def launched() -> bool:
    """Whether ``torchrun`` or :func:`launch` started this process."""
    return dist.is_torchelastic_launched()


def processes_planned() -> int:
    """How many processes there will be; also before :func:`processes`."""
    return int(os.environ.get("WORLD_SIZE", 1)) if launched() else 1


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


def total(x: Tensor) -> Tensor:
    """Sum over the processes of a tensor that needs no gradient."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
    return x


def mean(x: Tensor) -> Tensor:
    """Mean over the processes of a tensor that needs no gradient."""
    return total(x) / world_size()


def _sum(x: Tensor) -> Tensor:
    """Sum over the processes; what flows back is summed over them too."""
    with _quiet():
        total: Tensor = differentiable.all_reduce(x)  # type: ignore[no-untyped-call]
    return total


class _SharedBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes, on any device; torch's needs CUDA."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, C) or (n, C, H, W); statistics over the batches of all processes in training."""
        out = self._over_all(x) if self.training else super().forward(x)
        # timm's norms have dropout and activation inside.
        for name in ("drop", "act"):
            if (part := getattr(self, name, None)) is not None:
                out = part(out)
        return out

    def _over_all(self, x: Tensor) -> Tensor:
        # Autocast may have made half-precision input; running statistics are float32.
        wide = x if x.dtype.itemsize >= 4 else x.float()
        dims = [0, *range(2, x.ndim)]
        moments = torch.stack([wide.mean(dim=dims), (wide * wide).mean(dim=dims)])
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
        shape = (-1, *(1 for _ in dims[1:]))
        out: Tensor = (wide * factor.view(shape) + shift.view(shape)).to(x.dtype)
        return out

    def _check_input_dim(self, x: Tensor) -> None:
        """Any shape that the norm had before it was shared."""


def parallel(network: nn.Module, device: torch.device, *, shared_norms: bool = True) -> nn.Module:
    """Make a network train over all processes: gradients averaged, batch norm shared.

    Without ``shared_norms`` every process normalises by its own part of the batch, and the running
    statistics are those of the main process.
    """
    if world_size() == 1:
        return network
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not shared_norms:
        norms = []
    if device.type == "cuda":
        if any(hasattr(norm, "act") for norm in norms):
            # Torch's conversion would lose the activations inside timm's norms.
            from timm.layers.norm_act import convert_sync_batchnorm

            network = convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        elif norms:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return nn.parallel.DistributedDataParallel(network, device_ids=[device.index])
    for norm in norms:
        norm.__class__ = _SharedBatchNorm
    return nn.parallel.DistributedDataParallel(network)
