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

from usl.errors import InputError

# Found inside released checkpoints, and harmless: options of the training script, and numbers.
# NumPy 1 pickled its scalars under another module name.
_SCALAR = np.float64(0).__reduce__()[0]
# Batch norm's count of batches, which old checkpoints lack and evaluation does not use.
COUNTER = "num_batches_tracked"
# What MoCo calls the encoder that it trains and others use.
QUERY = "encoder_q."
ALLOWED: list[Any] = [
    argparse.Namespace,
    _SCALAR,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?", "U1", "S1")},
]


def read_checkpoint(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without executing what is in it.

    Parameters
    ----------
    path : Path
    trust : bool
        Load whatever the file holds. It can then run any code.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        Not there, damaged, or with objects other than tensors, numbers and options.
    """
    try:
        with torch.serialization.safe_globals(ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}; give another") from None
    except Exception as error:  # a damaged file fails in every way there is
        found = sorted(set(re.findall(r"GLOBAL ([\w.]+)", str(error))))
        if found:
            raise InputError(
                f"checkpoint {path} holds {', '.join(found)}, which can run code; if you trust "
                "the file, set MODEL.TRUST_CHECKPOINT True"
            ) from None
        raise InputError(f"cannot read checkpoint {path}: it is damaged") from error
    if not isinstance(content, dict):
        raise InputError(f"checkpoint {path} holds a {type(content).__name__}, not a dict")
    return content


def weights_in(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """The network weights of a checkpoint, under ``model`` or ``state_dict`` or at its top.

    Where a training of ours or USL-T kept a weight average, ``ema_model``, that is taken.
    The prefix ``module.``, which parallel training leaves, is taken off, and so is MoCo's
    ``encoder_q.``: then all else, the second encoder and its queue, is left out.
    """
    for key in ("ema_model", "model", "state_dict"):
        if isinstance(checkpoint.get(key), dict):
            checkpoint = checkpoint[key]
            break
    weights = {
        name.removeprefix("module."): value
        for name, value in checkpoint.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    of_query = {k.removeprefix(QUERY): v for k, v in weights.items() if k.startswith(QUERY)}
    return of_query or weights


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


def _some(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
