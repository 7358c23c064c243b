"""Where configs and inputs are looked for, and what relative paths are relative to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from usl.errors import InputError

STAGE_FOLDERS = (
    "selective_labeling",
    "usl-t_pretraining",
    "semisup-fixmatch-cifar",
    "semisup-simclrv2-cld",
    "semisup-simclrv2",
    "selfsup-simclr-cld",
)


@dataclass(frozen=True)
class PathSetting:
    """A setting that is a path.

    Attributes
    ----------
    words : pattern, optional
        Whole texts that are no paths but stand for something.
    released : str
        Stage in whose folder ``released/NAME`` is, wherever that stands.
    """

    words: re.Pattern[str] | None = None
    released: str = ""


def find_config(name: str, stage: Path) -> Path:
    """Look for a YAML as given, then from the repository root, then in the stage's ``configs``."""
    places = [Path(name), stage.parent / name, stage / "configs" / name]
    for place in places:
        if is_file(place):
            return place.resolve()
    tried = ", ".join(dict.fromkeys(str(place.absolute()) for place in places))
    raise InputError(f"{_what_is_there(places) or f'there is no config {name}'}; tried {tried}")


def find_input(path: str, what: str, *, advice: str = "", others: Sequence[Path] = ()) -> Path:
    """Look for an input file where people of the original have it.

    As given; at ``others``; then, for a path below a stage's ``pretrained``, in every stage's
    ``pretrained`` and at the repository root, where the original's ``tar`` commands leave it.

    Parameters
    ----------
    path : str
        Absolute, as in parsed settings.
    what : str
        For the error: what it is, and which setting names it.
    advice : str
        For the error: what else can be done, beginning with "or".
    others : sequence of Path
        Where else the file may be.

    Raises
    ------
    InputError
        It is nowhere; every place tried is listed.
    """
    given = Path(path)
    places = [given, *others]
    for folder in given.parents:
        if folder.name == "pretrained":
            root, rest = folder.parent, given.relative_to(folder)
            root = root.parent if root.name in STAGE_FOLDERS else root
            for same in _same_names(rest):
                places += [root / stage / "pretrained" / same for stage in STAGE_FOLDERS]
                places.append(root / same)
    for place in places:
        if is_file(place):
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    maker = next((f.parent.name for f in given.parents if f.name == "saved"), "")
    if maker in STAGE_FOLDERS and not advice:
        advice = f"or run the script in {maker} that makes it"
    if given.parent.name.startswith("pretrained_kNN_"):
        advice = f"or unpack {given.parent.name}.tgz there{advice and f', {advice}'}"
    missing = _what_is_there(places) or f"there is no {what}"
    raise InputError(
        f"{missing}; put {given.name} in one of the places tried: {tried}{advice and f', {advice}'}"
    )


def _what_is_there(places: list[Path]) -> str:
    """Of places without a file, that one is a folder; empty where none is."""
    return next(
        (f"{place} is a folder, and a file is needed" for place in places if os.path.isdir(place)),
        "",
    )


def _same_names(path: Path) -> list[Path]:
    """A path below ``pretrained``, and the other name of its folder: the original has two."""
    first, *rest = path.parts
    names = [first]
    for one, two in (("pretext_", "pretrained_kNN_"), ("pretrained_kNN_", "pretext_")):
        if first.startswith(one):
            names.append(two + first.removeprefix(one))
    return [Path(name, *rest) for name in names]


def get(tree: Any, key: str) -> Any:
    """What stands at a dotted key of nested dicts; None if there is nothing."""
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def has(tree: Any, key: str) -> bool:
    """Whether something stands at a dotted key of nested dicts."""
    return get(tree, key) is not None


def is_file(path: Path) -> bool:
    """Whether a path is that of a file."""
    try:
        return path.is_file()
    except OSError:
        # Such as a name that is too long.
        return False


def resolve(
    cfg: dict[str, Any], key: str, setting: PathSetting, *, folder: Path, stage: Path
) -> None:
    """Make a path of settings absolute, or each of a list; an empty one stays empty.

    So does what is none.

    Parameters
    ----------
    cfg : nested dict
        Changed.
    key : str
        With dots; it may be missing.
    setting : PathSetting
    folder : Path
        Where relative paths start.
    stage : Path
        Folder of the script.
    """
    value = get(cfg, key)
    if not value:
        return

    def absolute(text: str) -> str:
        if setting.words and setting.words.fullmatch(text):
            return text
        released = setting.released and Path(text).parts[:1] == ("released",)
        start = stage.parent / setting.released if released else folder
        # normpath rather than resolve: a linked data folder keeps the name people gave it.
        return os.path.normpath(start / os.path.expanduser(text))

    *sections, last = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[last] = [absolute(one) for one in value] if isinstance(value, list) else absolute(value)
