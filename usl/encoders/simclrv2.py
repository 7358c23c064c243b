"""SimCLRv2's pretrained networks, from the released layout of checkpoints."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from usl.checkpoints import load_weights, read_checkpoint, weights_in
from usl.errors import InputError
from usl.models.simclrv2 import SimclrEncoder, Size, size_in

PARTS = ("resnet", "head")
# The classifier that the released files have beside.
CLASSIFIER = "resnet.fc."


def load_simclrv2(path: Path, *, size: str = "", trust: bool = False) -> SimclrEncoder:
    """Load a pretrained ResNet with its head, in eval mode.

    Parameters
    ----------
    path : Path
        A dict with the weights of ``resnet`` and ``head``, such as ``r50_1x_sk0.pth``.
    size : str
        As in the names of released files; empty: from the name of this one.
    trust : bool
        See :func:`usl.checkpoints.read_checkpoint`.

    Raises
    ------
    InputError
        Unreadable, without these parts, of another size, or a name that hides the size.
    """
    named = size_of(size) if size else size_in(path.name)
    if named is None:
        raise InputError(
            f"the name of checkpoint {path} does not say its size; name it like r50_1x_sk0.pth, or "
            "set `size`, such as r50_1x_sk0 for depth 50, width 1 and no selective kernels"
        )
    content = read_checkpoint(path, trust=trust)
    if not all(isinstance(content.get(part), dict) for part in PARTS):
        raise InputError(
            f"checkpoint {path} has no weights called resnet and head, as SimCLRv2's have; give "
            "r50_1x_sk0.pth or another"
        )
    state: dict[str, Tensor] = {
        f"{part}.{name}": value
        for part in PARTS
        for name, value in weights_in({"model": content[part]}).items()
    }
    stem = state.get("resnet.net.0.0.weight")
    # Three convolutions in a row are the stem of selective kernels.
    small = stem is not None and stem.shape[-1] == 3 and "resnet.net.0.2.weight" not in state
    encoder = SimclrEncoder(named, small_images=small)
    load_weights(encoder, state, dropped=(CLASSIFIER,), where=f"{path} (`size` {named})")
    return encoder.eval()


def size_of(text: str) -> Size:
    """The size that a setting names.

    Raises
    ------
    InputError
        It names none.
    """
    size = size_in(text)
    if size is None or str(size) != text:
        raise InputError(f"`size` is {text!r}; give one such as r50_1x_sk0, r152_3x_sk1")
    return size
