"""One run of a stage script: its folder, device, log, record, and arrays that need no recomputing.

``RUN_DIR/run.json`` records what ran and, for each saved array, its fingerprint and what it was
computed from. An array is reused while that holds. A file that the record does not know, such as
a released result, is checked and used. What is replaced and was not ours is kept as ``.released``,
a text that somebody changed as ``.kept``.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from usl.artifacts import HASH_BYTES, fingerprint, load_array, save_array, save_text, set_aside
from usl.distributed import is_main
from usl.errors import InputError

log = logging.getLogger("usl")

PACKAGES = ("usl", "torch", "torchvision", "numpy", "scikit-learn", "pandas", "timm")
# Of the folders that this process works in.
_locks: dict[Path, FileLock] = {}
ADVICE = "remove it, or set `recompute` True"


@dataclass(frozen=True)
class Expected:
    """A saved array: its name, and what it must look like to be used.

    Attributes
    ----------
    name : str
        File name in RUN_DIR.
    shape : tuple
        None stands for any length.
    kind : str
        NumPy kinds of dtype accepted.
    low, high : float
        All values must lie between, ends included.
    rows_of_nan : bool
        Rows may be NaN instead.
    optional : bool
        A result from elsewhere may lack it.
    """

    name: str
    shape: tuple[int | None, ...]
    kind: str = "f"
    low: float = -np.finfo(np.float64).max
    high: float = np.finfo(np.float64).max
    optional: bool = False
    rows_of_nan: bool = False

    def load(self, folder: Path) -> np.ndarray:
        """Read and check it."""
        array = load_array(
            folder / self.name,
            shape=self.shape,
            kind=self.kind,
            limits=None if self.rows_of_nan else (self.low, self.high),
            advice=ADVICE,
        )
        if self.rows_of_nan and not all(
            (np.isfinite(some) | np.isnan(some[:, :1])).all()
            for some in np.array_split(array, 1 + array.nbytes // HASH_BYTES)
        ):
            raise InputError(f"{folder / self.name} has infinite values; {ADVICE}")
        return array


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """Whether a finished run's arrays are computed anew.

    Attributes
    ----------
    everything : bool
    by_budget : bool
        What depends on the budget, even if nothing else.
    """

    everything: bool = True
    by_budget: bool = True


class Run:
    """See the module. Made by :func:`start`.

    Attributes
    ----------
    folder : Path or None
        Its folder; None where nothing is written.
    device : torch.device
    command : str
        What to type to repeat the run.
    timings : dict of str to float
        Seconds by step.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        device: torch.device,
        command: str,
        settings: dict[str, Any],
        recompute: Recompute,
    ) -> None:
        self.folder, self.device, self.command = folder, device, command
        self.timings: dict[str, float] = {}
        self._recompute = recompute
        self._fingerprints: dict[str, str] = {}
        self._record: dict[str, Any] = {"arrays": {}, "stale": {}, "foreign": {}, "texts": {}}
        if folder is not None:
            self._take_up(folder, settings)

    def note(self, **facts: Any) -> None:
        """Add facts to the record: the data set's and the checkpoint's fingerprints, results."""
        self._record.update(facts)
        self._write()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds spent inside to ``timings[step]``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - begin
            self.timings[step] = round(self.timings.get(step, 0.0) + spent, 3)

    def cached(
        self,
        expected: Sequence[Expected],
        source: dict[str, Any],
        compute: Callable[[], Sequence[np.ndarray]],
        *,
        by_budget: bool = False,
        part: bool = False,
    ) -> list[np.ndarray | None]:
        """Return arrays that belong together: saved ones if they still hold, else computed ones.

        Parameters
        ----------
        expected : sequence of Expected
        source : dict
            All that the arrays depend on: options, and fingerprints of what they are made from.
        compute : callable
            Returns the arrays, in the order of ``expected``; they are saved.
        by_budget : bool
            They depend on the budget; see :class:`Recompute`.
        part : bool
            They are some of many that only this run makes: files from elsewhere are not used, and
            the log has no line for them.

        Returns
        -------
        list of ndarray
            None for an optional array that a result from elsewhere lacks.
        """
        names = " ".join(e.name for e in expected)
        if self.folder is not None:
            if self._recorded(expected, source):
                if not part:
                    log.info("reused %s", names)
                known = self._record["arrays"]
                return [e.load(self.folder) if e.name in known else None for e in expected]
            if not part and self._may_use_foreign(expected, by_budget):
                log.info("using %s, which this run did not make", names)
                return self._foreign(expected, source, by_budget)
        arrays: list[np.ndarray | None] = list(compute())
        for e, array in zip(expected, arrays, strict=True):
            assert array is not None
            self.save(e.name, array, source, by_budget=by_budget)
        return arrays

    def given(self, name: str, source: dict[str, Any]) -> bool:
        """Whether :meth:`cached` will take a file from elsewhere, such as a released result.

        Also one that an earlier run took for the same ``source``.
        """
        if self.folder is None or self._recompute.everything:
            return False
        entry = self._record["arrays"].get(name)
        if entry and entry.get("foreign") and entry["source"] == source:
            return bool(self._fingerprint_on_disk(name) == entry["sha256"])
        return (self.folder / name).exists() and not self._is_known(name)

    def save(
        self, name: str, array: np.ndarray, source: dict[str, Any], *, by_budget: bool = False
    ) -> None:
        """Save an array and record what it was computed from."""
        self._fingerprints[name] = fingerprint(array)
        if self.folder is None:
            return
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not self._is_ours(name):
            self._keep_foreign(name, array)
        self._enter(name, source, by_budget, foreign=False)
        save_array(path, array)

    def remove(self, name: str) -> None:
        """Remove what an earlier run left here under this name, if it is there."""
        if self.folder is not None:
            (self.folder / name).unlink(missing_ok=True)

    def save_text(self, name: str, text: str) -> None:
        """Save a text, such as a CSV, perhaps in a folder of its own.

        One that is there and that somebody has changed, such as by adding labels, is kept.
        """
        if self.folder is None:
            return
        path, texts = self.folder / name, self._record["texts"]
        path.parent.mkdir(parents=True, exist_ok=True)
        wanted = sha256(text.encode(errors="backslashreplace")).hexdigest()
        if path.exists():
            there = sha256(path.read_bytes()).hexdigest()
            if there not in (texts.get(name), wanted):
                kept = set_aside(path, ".kept")
                log.warning("%s is not as it was written here; kept as %s", name, kept.name)
        texts[name] = wanted
        self._write()
        save_text(path, text)

    def finish(self) -> None:
        """Mark the run as complete: the next one may compute anew; see :class:`Recompute`."""
        self.note(finished=True, timings=self.timings, ended=_now())
        if self.folder is not None:
            log.info("results are in %s", self.folder)

    def _take_up(self, folder: Path, settings: dict[str, Any]) -> None:
        path = folder / "run.json"
        old: dict[str, Any] = {}
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
                kept = [e for e in old["arrays"].values() if {"sha256", "source"} <= set(e)]
                if len(kept) < len(old["arrays"]) or not isinstance(old["stale"], dict):
                    raise ValueError
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                raise InputError(f"{path} is not a record of a run; remove it") from None
        # What was made with other settings has another source, where these matter.
        goes_on = bool(old) and not old.get("finished")
        arrays, stale = old.get("arrays", {}), old.get("stale", {})
        for name, entry in list(arrays.items()):
            by_budget = entry.get("by_budget") and self._recompute.by_budget
            anew = by_budget or self._recompute.everything
            # What was taken from elsewhere was not computed.
            if anew and (not goes_on or entry.get("foreign")):
                stale.setdefault(name, []).append(arrays.pop(name)["sha256"])
        if goes_on and arrays:
            log.info("an unfinished run goes on; what still holds is kept")
        self._record = {
            "command": self.command,
            "started": _now(),
            "finished": False,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "versions": _versions(),
            "config": settings,
            "arrays": arrays,
            "stale": stale,
            "foreign": old.get("foreign", {}),
            "texts": old.get("texts", {}),
        }
        self._write()

    def _write(self) -> None:
        if self.folder is not None:
            save_text(self.folder / "run.json", json.dumps(self._record, indent=1) + "\n")

    def _recorded(self, expected: Sequence[Expected], source: dict[str, Any]) -> bool:
        entries = {e.name: self._record["arrays"].get(e.name) for e in expected}
        foreign = any(entry and entry.get("foreign") for entry in entries.values())
        for e in expected:
            entry = entries[e.name]
            if entry is None and e.optional and foreign:
                continue
            if entry is None or entry["source"] != json.loads(json.dumps(source)):
                return False
            if self._fingerprint_on_disk(e.name) != entry["sha256"]:
                return False
        self._fingerprints.update(
            {name: entry["sha256"] for name, entry in entries.items() if entry}
        )
        return True

    def _fingerprint_on_disk(self, name: str) -> str | None:
        assert self.folder is not None
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return fingerprint(load_array(path, kind="fiub"))
        except InputError:
            # Whatever it is, it is not as recorded.
            return "unreadable"

    def _is_known(self, name: str) -> bool:
        """Whether the file is as this folder's runs recorded it at some time."""
        known = list(self._record["stale"].get(name, []))
        if name in self._record["arrays"]:
            known.append(self._record["arrays"][name]["sha256"])
        return self._fingerprint_on_disk(name) in known

    def _is_ours(self, name: str) -> bool:
        """Whether this folder's runs wrote the file, so that it may be lost."""
        foreign = self._record["foreign"].get(name)
        return self._is_known(name) and self._fingerprint_on_disk(name) != foreign

    def _may_use_foreign(self, expected: Sequence[Expected], by_budget: bool) -> bool:
        assert self.folder is not None
        if self._recompute.everything or (by_budget and self._recompute.by_budget):
            return False
        needed = [e.name for e in expected if not e.optional]
        return all((self.folder / n).exists() and not self._is_known(n) for n in needed)

    def _foreign(
        self, expected: Sequence[Expected], source: dict[str, Any], by_budget: bool
    ) -> list[np.ndarray | None]:
        """Check and take files from elsewhere; from now on they stand for ``source`` only."""
        assert self.folder is not None
        arrays: list[np.ndarray | None] = []
        for e in expected:
            there = (self.folder / e.name).exists() and not self._is_known(e.name)
            arrays.append(e.load(self.folder) if there or not e.optional else None)
        for e, array in zip(expected, arrays, strict=True):
            if array is not None:
                self._fingerprints[e.name] = fingerprint(array)
                self._enter(e.name, source, by_budget, foreign=True)
        return arrays

    def _enter(self, name: str, source: dict[str, Any], by_budget: bool, *, foreign: bool) -> None:
        """Record an array, before it is written: a file that is not as recorded is not reused."""
        before = self._record["arrays"].get(name)
        if before is not None:
            self._record["stale"].setdefault(name, []).append(before["sha256"])
        entry = {"sha256": self._fingerprints[name], "source": source, "by_budget": by_budget}
        self._record["arrays"][name] = entry | {"foreign": foreign}
        if foreign:
            self._record["foreign"][name] = self._fingerprints[name]
        self._write()

    def _keep_foreign(self, name: str, array: np.ndarray) -> None:
        """A file from elsewhere is about to be replaced: say whether it differs, and keep it."""
        assert self.folder is not None
        if self._fingerprint_on_disk(name) == fingerprint(array):
            return
        kept = set_aside(self.folder / name, ".released")
        log.warning("%s differs from what was computed here; kept as %s", name, kept.name)


def start(
    folder: Path | None,
    *,
    title: str,
    device: torch.device,
    command: str,
    settings: dict[str, Any],
    settings_text: str,
    exist_ok: bool = True,
    recompute: Recompute,
    part: bool = False,
) -> Run:
    """Begin a run: its folder with ``config.yaml`` and ``run.log``, and its record.

    Parameters
    ----------
    folder : Path, optional
        RUN_DIR; None writes nothing. Only the main process writes.
    title : str
        For the first line of the log.
    device : torch.device
    command : str
        What to type to repeat the run.
    settings : dict
        Nested and plain, for the record.
    settings_text : str
        For ``config.yaml``.
    exist_ok : bool
        False: stop if the folder is there.
    recompute : Recompute
    part : bool
        It is part of another run, in whose log it writes.

    Raises
    ------
    InputError
        The folder cannot be used.
    """
    if folder is not None and is_main():
        try:
            if folder.exists() and not exist_ok:
                raise InputError(f"{folder} is there already; choose another `run_name`")
            folder.mkdir(parents=True, exist_ok=True)
            _lock(folder)
            for left_over in folder.rglob(".*.partial"):
                left_over.unlink()
            if not part:
                _start_log(folder)
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot use `run_dir` {folder}: {reason}; choose another") from None
    else:
        folder = None
        if not part:
            _start_log(None)
    log.info("%s on %s", title, device)
    run = Run(folder, device=device, command=command, settings=settings, recompute=recompute)
    if folder is not None:
        save_text(folder / "config.yaml", settings_text)
    return run


def _lock(folder: Path) -> None:
    """Keep other processes out of a folder until this one ends."""
    if folder in _locks:
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another run is at work in {folder}; wait for it, or choose another `run_name`"
        ) from None
    _locks[folder] = lock


def open_log() -> None:
    """Show what is logged from now on, and remember it for the ``run.log`` of a run to come."""
    _handle(_stream(), MemoryHandler(sys.maxsize, flushLevel=sys.maxsize))


def _start_log(folder: Path | None) -> None:
    early = [one for kept in log.handlers if isinstance(kept, MemoryHandler) for one in kept.buffer]
    log.propagate = False
    if folder is None:
        _handle(_stream())
        return
    file = logging.FileHandler(folder / "run.log", encoding="utf-8")
    _handle(_stream(), file)
    for record in early:
        file.handle(record)


def _stream() -> logging.Handler:
    # Under torchrun only the main process speaks; the others must not use Python's last resort.
    return logging.StreamHandler() if is_main() else logging.NullHandler()


def _handle(*handlers: logging.Handler) -> None:
    for handler in list(log.handlers):
        log.removeHandler(handler)
        handler.close()
    log.setLevel(logging.INFO)
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        log.addHandler(handler)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
