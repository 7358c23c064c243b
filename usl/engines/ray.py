"""The engine of many machines: tasks on a Ray cluster.

Moritz et al., "Ray: A distributed framework for emerging AI applications", OSDI 2018. What is lost
with a node is computed again on another by Ray itself.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import cache, lru_cache, partial
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from usl.engines.local import ROWS, Encode, Local, cuts, tensor_of
from usl.errors import InputError

log = logging.getLogger("usl")

# Of a core that who encodes on CPUs asks for: Ray puts what asks for nothing anywhere, perhaps all
# on one node. Tasks that load leave it.
SHARE = 0.01
# Seconds in which a cluster must answer.
PATIENCE = 10.0
# Items of a block of Ray Data.
TOGETHER = 8
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

    # While one waits for a file that is elsewhere, the other decodes.
    threads = 2

    def __init__(self, address: str = "", *, rows: int = ROWS) -> None:
        super().__init__()
        self.ray, self.rows = _ray(), rows
        address = address or os.environ.get("RAY_ADDRESS", "")
        _connect(self.ray, address)
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        cores = [int(node["Resources"].get("CPU", 0)) for node in nodes]
        if not any(cores):
            raise InputError(
                f"the Ray cluster{f' at {address}' if address else ''} has no CPUs yet; wait for "
                "its nodes"
            )
        self.cores = min(filter(None, cores))
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
        return self.task.remote(this_package(), self.cores, function, *arguments)

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

    def pipeline(
        self,
        load: Callable[[Any], Any],
        encode: Encode,
        items: Sequence[Any],
        device: str | torch.device,
    ) -> Generator[Tensor, None, None]:
        """See :class:`Local`: by Ray Data, on GPUs where the cluster has some, else on the CPUs.

        Items are loaded by tasks of one core each. Those that encode have a GPU each, or are one a
        node and share its cores with these tasks.
        """
        if not items:
            return
        from ray import data

        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        gpus = int(self.ray.cluster_resources().get("GPU", 0))
        rows = [{"item": _packed(item)} for item in items]
        blocks = -(-len(rows) // TOGETHER)
        loading, encoding = self.put(load), self.put(encode)
        log.info("embedding on %d %s", gpus or self.nodes, "GPUs" if gpus else "nodes")
        found = (
            data.from_items(rows, override_num_blocks=blocks)
            .map(partial(_load, handle=loading, package=this_package()), num_cpus=1 - SHARE)
            .map_batches(
                _Encoder,
                fn_constructor_args=(encoding, this_package(), 0 if gpus else self.cores),
                batch_size=1,
                batch_format="numpy",
                compute=data.ActorPoolStrategy(size=min(blocks, gpus or self.nodes)),
                num_cpus=SHARE,
                num_gpus=1 if gpus else 0,
            )
        )
        for row in found.iter_rows():
            yield torch.from_numpy(_unpacked(row["found"]))

    def cut(self, n: int) -> list[tuple[int, int]]:
        """See :class:`Local`."""
        return cuts(n, self.rows)

    steps = cut

    def _result(self, handle: Any) -> Any:
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise InputError(str(error.cause)) from None
            raise


def _task(package: str, cores: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a worker does."""
    _prepare(package)
    torch.set_num_threads(cores)
    return function(*arguments)


@cache
def _prepare(package: str) -> None:
    """What a worker does before its first task."""
    if package != this_package():
        raise InputError(
            f"a node of the cluster has usl {this_package()}, and this machine {package}; install "
            "the same"
        )
    import ray

    _use_arrays(ray)


def _packed(value: Any) -> bytes:
    return pickle.dumps(value, protocol=5)


def _unpacked(data: bytes) -> Any:
    """What was packed; an error of a node is one of this machine."""
    value = pickle.loads(data)
    if isinstance(value, InputError):
        raise InputError(str(value))
    return value


@lru_cache(maxsize=2)
def _shared(handle: Any) -> Any:
    """What stands behind a handle, once a process."""
    import ray

    return ray.get(handle)


def _load(row: dict[str, Any], handle: Any, package: str) -> dict[str, Any]:
    """Load an item; an InputError travels in its place."""
    _prepare(package)
    try:
        loaded = _shared(handle)(_unpacked(row["item"]))
    except InputError as error:
        loaded = error
    return {"loaded": _packed(loaded)}


class _Encoder:
    """An actor that encodes what was loaded, on its GPU or on so many cores."""

    def __init__(self, handle: Any, package: str, cores: int) -> None:
        import ray

        _prepare(package)
        if cores:
            torch.set_num_threads(cores)
        self.encode, self.device = ray.get(handle), "cpu" if cores else "cuda"
        self.encode.to(self.device)

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        found: Any
        try:
            batch = self.encode.ready(_unpacked(rows["loaded"][0]), self.device)
            found = self.encode(batch, self.device).cpu().numpy()
        except InputError as error:
            found = error
        return {"found": [_packed(found)]}


@cache
def this_package() -> str:
    """What this package is: its version and a fingerprint of its code."""
    digest, folder = sha256(), Path(__file__).parents[1]
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{version('usl')}-{digest.hexdigest()[:8]}"


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise InputError("`engine` ray is not installed: pip install 'ray[data]'") from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one."""
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        if address not in ("", "auto", joined):
            raise InputError(
                f"`engine_address` is {address}, and this process works on the Ray cluster at "
                f"{joined} already; leave that first (ray.shutdown)"
            )
        return
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    # What Ray's own code says of its repairs is not for users.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if not address:
        # Its own, whatever else runs here.
        ray.init(address="local", include_dashboard=False, **options)
        return
    host, _, port = address.rpartition(":")
    try:
        if address != "auto":
            socket.create_connection((host.rpartition("/")[2], int(port)), PATIENCE).close()
        ray.init(address=address, **options)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"no Ray cluster of the same versions answers at {address} ({reason}); give the "
            "host:port of its head node as `engine_address`"
        ) from None


def _use_arrays(ray: Any) -> None:
    """Tensors travel as arrays, which processes of a node share instead of copying them."""
    ray.util.register_serializer(Tensor, serializer=_sent, deserializer=_received)


def _sent(tensor: Tensor) -> Any:
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError):
        # On a GPU, of a kind that NumPy has not, or with a gradient: as tensors always do.
        return pickle.dumps(tensor)


def _received(array: Any) -> Tensor:
    if isinstance(array, bytes):
        tensor: Tensor = pickle.loads(array)
        return tensor
    return tensor_of(array)
