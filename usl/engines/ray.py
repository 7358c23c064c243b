"""The engine of many machines: tasks on a Ray cluster.

Moritz et al., "Ray: A distributed framework for emerging AI applications", OSDI 2018. What is lost
with a node is computed again on another by Ray itself.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from usl.engines.local import ROWS, Local
from usl.errors import InputError

VERSION = version("usl")
# Seconds in which a cluster must answer.
PATIENCE = 10.0
# Tasks under way, for each that can run at once.
AHEAD = 2


class Ray(Local):
    """Runs tasks on the nodes of a cluster, each with all cores of one.

    Parameters
    ----------
    address : str
        Of a running cluster, host:port; empty: that of ``RAY_ADDRESS``, else one is started on
        this machine.
    rows : int
        Of a task.

    Raises
    ------
    InputError
        Ray is not installed, nothing answers there, or it has another version of Ray, Python or
        this package.
    """

    def __init__(self, address: str = "", *, rows: int = ROWS) -> None:
        self.ray, self.rows = _ray(), rows
        address = address or os.environ.get("RAY_ADDRESS", "")
        _connect(self.ray, address)
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        cores = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        self.cores = min(count for count in (*cores, max(cores)) if count)
        self.task = self.ray.remote(num_cpus=self.cores)(_task)
        _use_arrays(self.ray)
        self.nodes = len(nodes)

    def __str__(self) -> str:
        return f"a Ray cluster (nodes: {self.nodes}, cores of a task: {self.cores})"

    def device(self, wanted: str | torch.device) -> str | torch.device:
        """The CPU, whose memory the processes of a node share."""
        return "cpu"

    def put(self, value: Any) -> Any:
        """See :class:`Local`."""
        return self.ray.put(value)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """See :class:`Local`."""
        return self.task.remote(VERSION, self.cores, function, *arguments)

    def map(self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """See :class:`Local`; some are under way while the caller has the results before."""
        waiting: deque[Any] = deque()
        most = AHEAD * max(1, int(self.ray.cluster_resources().get("CPU", 1) / self.cores))
        for arguments in tasks:
            waiting.append(self.call(function, *arguments))
            if len(waiting) > most:
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def cut(self, n: int) -> list[tuple[int, int]]:
        """See :class:`Local`."""
        starts = range(0, max(n, 1), self.rows)
        return [(start, min(start + self.rows, n)) for start in starts]

    def _result(self, handle: Any) -> Any:
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise


def _task(package: str, cores: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a worker does."""
    _prepare(package, cores)
    return function(*arguments)


@cache
def _prepare(package: str, cores: int) -> None:
    """What a worker does before its first task."""
    if package != VERSION:
        raise InputError(
            f"a node of the cluster has usl {VERSION}, and this machine {package}; install the same"
        )
    import ray

    _use_arrays(ray)
    torch.set_num_threads(cores)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("`engine` ray is not installed: pip install 'usl[ray]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one."""
    if ray.is_initialized():
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        # Its own, whatever else runs here.
        ray.init(address="local", include_dashboard=False, **options)
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.rpartition("/")[2], int(port)), PATIENCE).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"no Ray cluster of the same versions answers at {address} ({reason}); give the "
            "host:port of its head node"
        ) from None


def _use_arrays(ray: Any) -> None:
    """Tensors travel as arrays, which processes of a node share instead of copying them."""
    ray.util.register_serializer(Tensor, serializer=Tensor.numpy, deserializer=_tensor)


def _tensor(array: Any) -> Tensor:
    with warnings.catch_warnings():
        # What is shared is read-only; no task changes its arguments.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
