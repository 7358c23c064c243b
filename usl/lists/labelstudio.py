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


def read_tasks(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The file and the choices of each task of an export in JSON, JSON-MIN or CSV.

    Raises
    ------
    InputError
        No such export.
    """
    for url, choices in _json(path) if path.suffix == ".json" else _csv(path):
        parts = urlsplit(url)
        # The file is the path of the address, or for local files what d= says.
        yield parse_qs(parts.query).get("d", [""])[0] or unquote(parts.path), choices


def is_export(head: Sequence[str]) -> bool:
    """Whether the columns of a CSV are those of Label Studio's export."""
    return CHOICE in head and "image" in head and "Index" not in head


def _json(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Address and choices of each task of JSON or JSON-MIN."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))
        for task in tasks:
            data = task.get("data", task)
            if "annotations" in task:
                chosen = [
                    choice
                    for annotation in task["annotations"]
                    if not annotation.get("was_cancelled")
                    for result in annotation["result"]
                    if result.get("type") == "choices"
                    for choice in result["value"]["choices"]
                ]
            else:
                chosen = _choices(task.get(CHOICE))
            yield str(data["image"]), chosen
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give another") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(
            f"{path} is no export of Label Studio; export as JSON, JSON-MIN or CSV"
        ) from None


def _choices(value: Any) -> list[str]:
    if isinstance(value, dict):
        value = value.get("choices")
    return [value] if isinstance(value, str) and value else list(value or [])


def _csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for row in csv.DictReader(file):
                text = row.get(CHOICE) or ""
                # Several choices are written as JSON.
                chosen = json.loads(text)["choices"] if text.startswith("{") else _choices(text)
                yield row["image"], chosen
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give another") from None
    except (ValueError, KeyError, csv.Error):
        raise InputError(
            f"{path} is no export of Label Studio; export as JSON, JSON-MIN or CSV"
        ) from None
