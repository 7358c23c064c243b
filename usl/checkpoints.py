"""Network weights from files that nobody has to trust."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from usl.artifacts import disguise_of
from usl.errors import InputError

# Found inside released checkpoints, and harmless: options of the training script, and numbers.
# NumPy 1 pickled its scalars under another module name.
_SCALAR = np.float64(0).__reduce__()[0]
# Batch norm's count of batches, which old checkpoints lack and evaluation does not use.
COUNTER = "num_batches_tracked"
# Under which keys checkpoints have their weights, and the average of these.
WEIGHTS = {
    "model": ("model", "state_dict"),
    "ema": ("ema_model", "ema_state_dict", "state_dict_ema", "model_ema"),
}
# What wrappers of networks put before the names: parallel training, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.")
# What MoCo calls the encoder that it trains and others use.
QUERY = "encoder_q."
ALLOWED: list[Any] = [
    argparse.Namespace,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?", "U1", "S1")},
]


def read_checkpoint(path: Path, *, trust: bool | None = None) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing what is in it.

    Parameters
    ----------
    path : Path
        Of ``torch.save``, or ``.safetensors``.
    trust : bool, optional
        Load whatever the file holds. It can then run any code. None: as False, where the caller has
        no such option to offer.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        Not there, damaged, another kind of file, or with objects other than tensors, numbers and
        options.
    """
    content = _load(path, "checkpoint", trust=trust)
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not a dict")
    return content


def read_tensor(path: Path) -> Tensor:
    """Load a file of ``torch.save`` or ``.safetensors`` that holds one tensor and nothing else.

    Raises
    ------
    InputError
        As :func:`read_checkpoint`; or it holds something else, or several tensors.
    """
    content = _load(path, "file", trust=None)
    tensors = content if isinstance(content, dict) else {"": content}
    if len(tensors) != 1 or not isinstance(next(iter(tensors.values())), Tensor):
        names = ", ".join(map(str, tensors)) or type(content).__name__
        raise InputError(f"{path} holds {_cut(names)}; give a file of one tensor")
    tensor: Tensor = next(iter(tensors.values()))
    return tensor


def _load(path: Path, what: str, *, trust: bool | None) -> Any:
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the {what} itself")
    if disguise := disguise_of(path):
        raise InputError(f"cannot read {what} {path}: {disguise}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=not trust)
    except FileNotFoundError:
        raise InputError(f"there is no {what} {path}; give another") from None
    except Exception as error:  # damaged files raise errors of any kind
        found = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        if found:
            holding = f"{what} {path} holds {', '.join(found)}, which can run code"
            if trust is None:
                raise InputError(f"{holding}; give one of tensors only") from None
            raise InputError(f"{holding}; if you trust the file, set `trust` True") from None
        if "TorchScript" in str(error):
            raise InputError(
                f"{what} {path} is a TorchScript archive; save the state_dict of what "
                "torch.jit.load makes of it, and give that"
            ) from None
        raise InputError(f"cannot read {what} {path}: it is damaged") from error


def weights_in(checkpoint: dict[str, Any], *, which: str = "model") -> dict[str, Tensor]:
    """The network weights of a checkpoint.

    Prefixes that wrappers leave (``module.``, ``_orig_mod.``, ``model.``) are taken off, and so is
    MoCo's ``encoder_q.``: then all else, the second encoder and its queue, is left out.

    Parameters
    ----------
    checkpoint : dict
        With the weights at its top, or under a key of ``WEIGHTS``.
    which : {"model", "ema"}
        The trained weights or their average, where there are both; of one kind only, that.

    Raises
    ------
    InputError
        An unknown ``which``, or no average where it is asked for.
    """
    if which not in WEIGHTS:
        raise InputError(f"unknown `weights` {which!r}; choose model or ema")
    found = {
        kind: next(checkpoint[key] for key in keys if isinstance(checkpoint.get(key), dict))
        for kind, keys in WEIGHTS.items()
        if any(isinstance(checkpoint.get(key), dict) for key in keys)
    }
    if which == "ema" and "ema" not in found:
        raise InputError("the checkpoint has no weight average; set `weights` model")
    state = found.get(which) or next(iter(found.values()), checkpoint)
    weights = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    while wrapped := next((p for p in WRAPPERS if any(k.startswith(p) for k in weights)), ""):
        weights = {name.removeprefix(wrapped): value for name, value in weights.items()}
    nested = [k for k, v in state.items() if isinstance(v, dict) and _has_tensors(v)]
    if len(nested) == 1 and not weights:
        return weights_in(state[nested[0]])
    if nested and not weights:
        raise InputError(
            f"the checkpoint has several weights, {_some(nested)}; save those to use as a file of "
            "their own"
        )
    of_query = {k.removeprefix(QUERY): v for k, v in weights.items() if k.startswith(QUERY)}
    return of_query or weights


def _has_tensors(content: dict[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in content.values())


def resumable(
    content: dict[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """The weights of a training that is to go on, and their average if it has one.

    Names stay as they are, but for the ``module.`` that parallel training leaves.

    Raises
    ------
    InputError
        A file of something else.
    """
    found = []
    for keys in WEIGHTS.values():
        states = [content[key] for key in keys if isinstance(content.get(key), dict)]
        found.append(
            {k.removeprefix("module."): v for k, v in states[0].items()} if states else None
        )
    if found[0] is None:
        raise InputError(f"{path} is no checkpoint of a training; give one with its weights")
    return found[0], found[1]


def load_weights(
    network: nn.Module, weights: dict[str, Tensor], *, dropped: Sequence[str] = (), where: str
) -> None:
    """Put weights into a network; every name and shape must fit.

    Parameters
    ----------
    network : nn.Module
    weights : dict of str to Tensor
    dropped : sequence of str
        Beginnings of names that the network does without on purpose.
    where : str
        File, for the error.

    Raises
    ------
    InputError
        Lists what is missing, what is left over and what has another shape.
    """
    given = {k: v for k, v in weights.items() if not k.startswith(tuple(dropped))}
    wanted = network.state_dict()
    shapes = [
        f"{k} {tuple(given[k].shape)} instead of {tuple(wanted[k].shape)}"
        for k in wanted
        if k in given and given[k].shape != wanted[k].shape
    ]
    faults = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing", [k for k in wanted if k not in given and not k.endswith(COUNTER)]),
            ("left over", [k for k in given if k not in wanted]),
            ("of another shape", shapes),
            ("not finite", [k for k in given if not torch.isfinite(given[k].to_dense()).all()]),
        )
        if names
    ]
    if faults:
        raise InputError(f"checkpoint {where} is of another network; {'; '.join(faults)}")
    network.load_state_dict(given, strict=False)


def _cut(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[:limit]}…"


def _some(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
