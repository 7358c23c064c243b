"""Label Studio: tasks for its projects, and the answers that it exports."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import quoteattr

from usl.artifacts import save_text
from usl.errors import InputError

# Where Label Studio serves files of the folder LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
LOCAL_FILES = "/data/local-files/?d="
# What its configuration calls the answer, and what its CSV and JSON-MIN call it then.
CHOICE = "choice"


def write_tasks(
    folder: Path, rows: Sequence[tuple[int, str]], *, classes: Sequence[str], prefix: str
) -> None:
    """Write ``tasks.json``, to import, and ``config.xml``, the labelling interface.

    Parameters
    ----------
    folder : Path
    rows : sequence of (index, name)
        The picks: numbers and files.
    classes : sequence of str
        The choices; without any the interface has none, to be filled in.
    prefix : str
        What stands before the names, as ``/data/local-files/?d=photos/`` or
        ``https://example.org/photos/``.
    """
    tasks = [
        {"data": {"image": prefix + quote(name), "index": index, "path": name}}
        for index, name in rows
    ]
    save_text(folder / "tasks.json", json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    save_text(
        folder / "config.xml",
        f"""<View>
  <Image name="image" value="$image"/>
  <Choices name="{CHOICE}" toName="image" choice="single" showInLine="true">
{choices}
  </Choices>
</View>
""",
    )


def read_tasks(path: Path) -> list[tuple[str, list[str]]]:
    """The file and the choices of each task of an export in JSON, JSON-MIN or CSV.

    Raises
    ------
    InputError
        No such export.
    """
    try:
        given = _json(path) if path.suffix.lower() == ".json" else _csv(path)
        return [(_file_of(data), _choices(answers)) for data, answers in given]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give another") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, csv.Error):
        raise InputError(
            f"{path} is no export of Label Studio; export as JSON, JSON-MIN or CSV"
        ) from None


def is_export(head: Sequence[str]) -> bool:
    """Whether the columns of a CSV are those of Label Studio's export."""
    return CHOICE in head and "image" in head and "Index" not in head


def _file_of(data: dict[str, Any]) -> str:
    """The file that a task is about: the path of its address, or for local files what d= says.

    Where that begins with a prefix, ``path`` of :func:`write_tasks` says what the name is.
    """
    parts = urlsplit(str(data["image"]))
    file = parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path)
    name = data.get("path")
    return name if isinstance(name, str) and name and file.endswith(name) else file


def _json(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    """What each task of JSON or JSON-MIN is about, and its choices."""
    for task in json.loads(path.read_text(encoding="utf-8-sig")):
        data = task.get("data", task)
        chosen = task.get(CHOICE)
        if "annotations" in task:
            chosen = [
                choice
                for annotation in task["annotations"]
                if not annotation.get("was_cancelled")
                for result in annotation["result"]
                if result.get("type") == "choices"
                for choice in _choices(result["value"])
            ]
        yield data, chosen


def _csv(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            text = row.get(CHOICE) or ""
            # Several choices are written as JSON.
            yield row, json.loads(text) if text.startswith("{") else text


def _choices(value: Any) -> list[str]:
    """A choice, or several, in whatever form."""
    if isinstance(value, dict):
        value = value["choices"]
    choices = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(choice, str) for choice in choices):
        raise TypeError
    return [choice for choice in choices if choice]
