"""Label Studio: tasks for its projects, and the answers that it exports."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
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


def read_answers(path: Path, names: Sequence[str]) -> tuple[dict[int, str], list[str]]:
    """The answers of an export in JSON, JSON-MIN or CSV, by the index of the image.

    Images are found by their files: the longest end of the path that one image has. Of several
    annotators the majority counts.

    Parameters
    ----------
    path : Path
        ``.json`` or ``.csv``.
    names : sequence of str
        Files of all images, (N,).

    Returns
    -------
    answers : dict of int to str
        In the order of the file.
    remarks : list of str
        Where annotators disagree, and how many tasks have no answer.

    Raises
    ------
    InputError
        No export of Label Studio; a file that is no image's, or could be that of several; or
        annotators who disagree evenly.
    """
    given = _json(path) if path.suffix == ".json" else _csv(path)
    by_name: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(names):
        by_name[name.rpartition("/")[2]].append(index)
    votes: dict[int, list[str]] = {}
    empty = 0
    for number, (url, answers) in enumerate(given, start=1):
        if not answers:
            empty += 1
            continue
        index = _index_of(url, names, by_name, f"{path}, task {number}")
        votes.setdefault(index, []).extend(answers)
    if not votes:
        raise InputError(f"{path} has no answers; label some tasks and export them again")
    remarks = [f"{empty} tasks have no answer"] if empty else []
    found = {}
    for index, choices in votes.items():
        ranked = Counter(choices).most_common()
        if len(ranked) > 1:
            counted = ", ".join(f"{choice} {count}" for choice, count in ranked)
            if ranked[0][1] == ranked[1][1]:
                raise InputError(
                    f"{path}: annotators disagree evenly on {names[index]!r}, {counted}; settle it"
                )
            remarks.append(f"annotators disagree on {names[index]}: {counted}")
        found[index] = ranked[0][0]
    return found, remarks


def is_export(head: Sequence[str]) -> bool:
    """Whether the columns of a CSV are those of Label Studio's export."""
    return CHOICE in head and "image" in head and "Index" not in head


def _index_of(url: str, names: Sequence[str], by_name: dict[str, list[int]], where: str) -> int:
    parts = urlsplit(url)
    # The file is the path of the address, or for local files what d= says.
    local = parse_qs(parts.query).get("d", [""])[0]
    file = f"/{local or unquote(parts.path)}"
    candidates = by_name.get(file.rpartition("/")[2], [])
    fitting = [index for index in candidates if file.endswith(f"/{names[index]}")]
    # Without the folders that the pool has above it, the name alone must do.
    fitting = fitting or candidates
    if not fitting:
        raise InputError(f"{where}: {url!r} is no image of this pool; give answers to its picks")
    longest = max(len(names[index]) for index in fitting)
    best = [index for index in fitting if len(names[index]) == longest]
    if len(best) > 1:
        raise InputError(
            f"{where}: {url!r} may be {names[best[0]]!r} or {names[best[1]]!r}; give it its folder"
        )
    return best[0]


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
