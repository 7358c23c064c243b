"""Settings from defaults, YAML files that inherit, and options of the command line.

The only module that knows YACS. A stage's settings are its defaults, changed by the file that
``BASE`` names, by the file of ``--cfg``, by flags and by ``--opts``, in this order, then frozen.
"""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yacs.config import CfgNode as CfgNode

from usl.config.flags import Flag, add_flags, given
from usl.config.paths import PathSetting, find_config, get, has, is_file, resolve
from usl.errors import InputError

log = logging.getLogger("usl")

KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text, in quotes"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")


def parse(
    defaults: CfgNode,
    argv: Sequence[str] | None = None,
    *,
    script: str,
    doc: str | None = None,
    default_cfg: str | None = None,
    flags: Sequence[Flag] = (),
    cfg_of: Callable[[dict[str, Any]], str | None] = lambda flags: None,
    paths: Mapping[str, PathSetting] | None = None,
    optional: Collection[str] = (),
    retired: Mapping[str, str] | None = None,
    owners: Callable[[str], list[str]] = lambda key: [],
) -> CfgNode:
    """Read the command line of a stage script.

    Parameters
    ----------
    defaults : CfgNode
        A fresh tree of the stage's defaults; it is changed.
    argv : sequence of str, optional
        Arguments; default those of the process.
    script : str
        ``__file__`` of the script. Its folder is where relative paths of defaults and YAML start.
    doc : str, optional
        ``__doc__`` of the script, for ``--help``.
    default_cfg : str, optional
        The YAML without ``--cfg`` and without flags, from the script's folder.
    flags : sequence of Flag
        Words that fill settings; before ``--opts``, after ``--cfg``.
    cfg_of : callable
        Given the settings that flags fill, by their keys: the YAML without ``--cfg``, if any.
    paths : mapping of str to PathSetting, optional
        Settings that are paths, by their keys.
    optional : collection of str
        Keys whose default stays where a file has null.
    retired : mapping of str to str, optional
        Keys of old YAML files that do nothing any more, and why: a word is said, and no more.
    owners : callable
        The stages that have a key, for the error of one that this stage has not.

    Returns
    -------
    CfgNode
        Frozen, with absolute paths.

    Raises
    ------
    InputError
        An unknown key, a key of another stage, a value of the wrong kind, a file not there, …
    """
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cfg", metavar="FILE", help="a YAML, here, at the root or in configs/")
    parser.add_argument(
        "--opts",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings that override the file",
    )
    add_flags(parser, flags)
    arguments = parser.parse_args(argv)
    words = list(given(arguments, flags))
    stage = Path(script).resolve().parent
    cfg = defaults
    paths = paths or {}
    for key, setting in paths.items():
        resolve(cfg, key, setting, folder=stage, stage=stage)
    name = arguments.cfg
    if name is None and words:
        default_cfg = cfg_of({flag.key: value for flag, value in words})
    if name is None and default_cfg is not None:
        name = str(stage / default_cfg)
    if name is not None:
        for path in _inheritance(find_config(name, stage)):
            tree = _without(_read_yaml(path), retired or {}, source=str(path))
            merge(cfg, tree, source=str(path), owners=owners, optional=optional)
            for key, setting in paths.items():
                if has(tree, key):
                    resolve(cfg, key, setting, folder=stage, stage=stage)
    # What is dumped beside the outputs stands alone.
    cfg.BASE = ""
    for flag, value in words:
        if flag.key:
            merge(cfg, _nested(flag.key, value), source=flag.names[-1], owners=owners)
        if flag.key in paths:
            resolve(cfg, flag.key, paths[flag.key], folder=Path.cwd(), stage=stage)
    opts = arguments.opts
    if len(opts) % 2:
        raise InputError(f"--opts {' '.join(opts)}: give pairs of KEY VALUE")
    for key, text in zip(opts[::2], opts[1::2], strict=True):
        if key == "BASE":
            raise InputError("--opts: BASE belongs in a YAML; choose another with --cfg")
        # A text is taken as it stands: YAML would make 8 of 010.
        value = text if isinstance(get(cfg, key), str) else _value(text)
        tree = _without(_nested(key, value), retired or {}, source="--opts")
        merge(cfg, tree, source="--opts", owners=owners)
        if key in paths:
            resolve(cfg, key, paths[key], folder=Path.cwd(), stage=stage)
    if cfg.OPTS_IN_RUN_NAME and opts:
        cfg.RUN_NAME += "_" + "_".join(part.replace("/", "-") for part in opts)
    if not cfg.RUN_DIR:
        cfg.RUN_DIR = str(Path(cfg.SAVE_DIR) / (cfg.RUN_NAME or Path(script).stem))
    cfg.freeze()
    return cfg


def merge(
    cfg: CfgNode,
    tree: dict[str, Any],
    *,
    source: str,
    prefix: str = "",
    owners: Callable[[str], list[str]] = lambda key: [],
    optional: Collection[str] = (),
) -> None:
    """Put the values of a nested dict into settings; every key must be there, with its kind.

    Raises
    ------
    InputError
        Names the key, and ``source``, where it comes from.
    """
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in cfg:
            raise InputError(f"{source}: {_unknown(cfg, str(key), name, owners(name))}")
        if value is None and name in optional:
            continue
        if isinstance(cfg[key], CfgNode):
            if not isinstance(value, dict):
                raise InputError(f"{source}: {name} is a section; give it keys")
            inner = f"{name}."
            merge(cfg[key], value, source=source, prefix=inner, owners=owners, optional=optional)
        else:
            cfg[key] = _converted(cfg[key], value, name, source)


def dump(cfg: CfgNode) -> str:
    """Settings as YAML, which ``--cfg`` reads again."""
    return str(cfg.dump(sort_keys=False))


def as_dict(cfg: CfgNode) -> dict[str, Any]:
    """Settings as nested dicts of plain values."""
    return {k: as_dict(v) if isinstance(v, CfgNode) else v for k, v in cfg.items()}


def _inheritance(path: Path) -> list[Path]:
    files = [path]
    while base := _read_yaml(files[0]).get("BASE"):
        if not isinstance(base, str):
            raise InputError(f"{files[0]}: BASE is {base!r}; give the path of a YAML")
        parent = (files[0].parent / base).resolve()
        if parent in files:
            raise InputError(f"{files[0]}: BASE {base} leads back to itself")
        if not is_file(parent):
            raise InputError(f"{files[0]}: BASE {base} is not there; tried {parent}")
        files.insert(0, parent)
    return files


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where} is not YAML: {getattr(error, 'problem', error)}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} holds no KEY: VALUE pairs")
    return tree


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text) if text else ""
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _nested(key: str, value: Any) -> dict[str, Any]:
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def _converted(default: Any, value: Any, name: str, source: str) -> Any:
    if isinstance(default, list):
        if not isinstance(value, list):
            raise InputError(f"{source}: {name} is {value!r}; give a list")
        kind = default[0] if default else ""
        return [_converted(kind, v, f"{name}[{i}]", source) for i, v in enumerate(value)]
    kind = type(default)
    if kind is float and not isinstance(value, bool):
        try:
            # YAML takes 1e-4 for a text; a number was meant.
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    if type(value) is not kind:
        raise InputError(f"{source}: {name} is {value!r}; give {KINDS[kind]}")
    return value


def _without(tree: dict[str, Any], retired: Mapping[str, str], *, source: str) -> dict[str, Any]:
    """A tree less its retired keys, each of which is remarked."""

    def kept(branch: dict[str, Any], prefix: str) -> dict[str, Any]:
        found = {}
        for key, value in branch.items():
            name = f"{prefix}{key}"
            if name in retired:
                log.warning("%s: %s is ignored: %s", source, name, retired[name])
            elif not isinstance(value, dict):
                found[key] = value
            elif (inside := kept(value, f"{name}.")) or not value:
                found[key] = inside
        return found

    return kept(tree, "")


def _unknown(cfg: CfgNode, key: str, name: str, owners: list[str]) -> str:
    if "." in key:
        return f"{name} is written with a dot; in a YAML its parts stand below each other"
    if owners:
        return f"{name} is a setting of another stage ({', '.join(owners)}); remove it"
    close = [leaf for leaf in leaves(cfg) if leaf.split(".")[-1] == key][:1]
    if not close:
        close = difflib.get_close_matches(name, [name[: -len(key)] + k for k in cfg], n=1)
    meant = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(cfg)}"
    return f"unknown key {name}{meant}"


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    """The keys of all values, with dots."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
