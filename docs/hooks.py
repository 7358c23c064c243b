"""What the manual takes from the code: the page of settings, names in docstrings.

MkDocs calls the functions ``on_…``. ``settings.md`` is made of the defaults of every stage; what a
setting means is the comment above its line in ``usl/stages``. The build fails where there is none.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from usl.config.parse import CfgNode
from usl.stages.table import RETIRED, STAGES

ROOT = Path(__file__).resolve().parents[1]
HEAD = """# Settings

This page is made from the code: the defaults of each script, and the comments above them in
`usl/stages/`. Settings that share a comment share a row; in italics stands what holds for several.

A script's settings are its defaults, changed by the YAML that `BASE` names, by the YAML of `--cfg`,
by flags where a script has the original's, and by `--opts KEY VALUE …`, in this order. What a run
used is in `RUN_DIR/config.yaml`, which `--cfg` takes again.

- A mistyped key, a key of another stage, or a value of the wrong kind is an error that names it. A
  whole number serves where a number is needed.
- `--cfg NAME` is looked for as given, then from the repository root, then in the stage's
  `configs/`.
- Relative paths in a YAML start at the stage's folder, those after `--opts` at the current folder.
- The YAML files of the original code work as they are.
"""
ALONE = "Without `--cfg` it takes these defaults alone: then give `DATASET.NAME` with `--opts`."


@dataclass(frozen=True)
class Meaning:
    """What is said of a setting, or in general of those of a function, and where that stands."""

    text: str
    place: tuple[str, int]
    general: bool = False


@dataclass(frozen=True)
class Row:
    """A setting of a script."""

    key: str
    default: Any
    meaning: Meaning


@dataclass(frozen=True)
class Assignment:
    """A line that sets a default: its first and last line, and what it is set in."""

    start: int
    end: int
    parent: str
    section: bool


class Source:
    """Comments, assignments and functions of a module of stages, by line."""

    def __init__(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        self.name = path.name
        self.comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(text).readline)
            if token.type == tokenize.COMMENT and lines[token.start[0] - 1].lstrip().startswith("#")
        }
        self.assignments: dict[int, Assignment] = {}
        self.functions: list[ast.FunctionDef] = []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                self.functions.append(node)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
                parent = ast.unparse(node.targets[0].value)
                section = ast.unparse(node.value) == "CfgNode()"
                end = node.end_lineno or node.lineno
                self.assignments[end] = Assignment(node.lineno, end, parent, section)

    def above(self, line: int) -> Meaning | None:
        """The comment right above a line."""
        first = line
        while first - 1 in self.comments:
            first -= 1
        text = " ".join(self.comments[number] for number in range(first, line))
        return Meaning(text, (self.name, first)) if text else None

    def shared(self, line: int) -> Meaning | None:
        """The comment above the first of the lines, one after the other, that a line is of."""
        one = self.assignments.get(line)
        while one is not None:
            if found := self.above(one.start):
                return found
            before = self.assignments.get(one.start - 1)
            if before is None or before.section or before.parent != one.parent:
                return None
            one = before
        return None

    def summary(self, line: int) -> Meaning | None:
        """The first paragraph of the docstring of the function that has a line."""
        for function in self.functions:
            if function.lineno <= line <= (function.end_lineno or line):
                text = (ast.get_docstring(function) or "").partition("\n\n")[0]
                place = (self.name, function.lineno)
                return Meaning(" ".join(text.split()), place, general=True) if text else None
        return None


@cache
def source(name: str) -> Source:
    """The module of this file name."""
    return Source(Path(name))


# Where a setting is given a default: file and line.
Place = tuple[str, int]


@contextmanager
def recorded() -> Iterator[dict[tuple[int, str], list[Place]]]:
    """Record which lines set what, by section and name, while defaults are made."""
    places: dict[tuple[int, str], list[Place]] = {}
    plain = CfgNode.__setattr__

    def set_and_record(node: CfgNode, name: str, value: Any) -> None:
        caller = sys._getframe(1)
        places.setdefault((id(node), name), []).append((caller.f_code.co_filename, caller.f_lineno))
        plain(node, name, value)

    CfgNode.__setattr__ = set_and_record
    try:
        yield places
    finally:
        CfgNode.__setattr__ = plain


def meaning_of(key: str, places: list[Place], section: list[Place]) -> Meaning:
    """What the code says of a setting: above its line, its lines, its section, or its function.

    Raises
    ------
    PluginError
        Nothing.
    """
    # What is set last is said last; where nothing is said, what was said before still holds.
    for ask in (Source.above, Source.shared):
        for file, line in reversed(places):
            if found := ask(source(file), line):
                return found
    for file, line in section:
        if found := source(file).above(line):
            return found
    for file, line in places:
        if found := source(file).summary(line):
            return found
    raise PluginError(f"{key} in usl/stages has no comment; write one above its default")


def rows_of(script: str) -> list[Row]:
    """All settings of a script, in their order."""
    with recorded() as places:
        tree = STAGES[script].defaults()

    def rows(node: CfgNode, prefix: str, section: list[Place]) -> Iterator[Row]:
        for name, value in node.items():
            at, key = places[id(node), name], f"{prefix}{name}"
            if isinstance(value, CfgNode):
                yield from rows(value, f"{key}.", at)
            else:
                yield Row(key, value, meaning_of(key, at, section))

    return list(rows(tree, "", []))


def table(rows: list[Row]) -> str:
    """Rows of one comment together."""
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    for meaning, together in groupby(rows, lambda row: row.meaning):
        some = list(together)
        keys = "<br>".join(f"`{row.key}`" for row in some)
        defaults = "<br>".join(f"`{shown(row.default)}`" for row in some)
        text = escaped(meaning.text)
        lines.append(f"| {keys} | {defaults} | {f'*{text}*' if meaning.general else text} |")
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A default as a YAML has it."""
    return '""' if value == "" else str(value)


def escaped(text: str) -> str:
    """A comment as Markdown in a table."""
    return re.sub(r"([|<*])", r"\\\1", text)


def settings_page() -> str:
    """The page of settings."""
    of = {script: rows_of(script) for script in STAGES}
    everywhere = [
        row for row in next(iter(of.values())) if all(row in rows for rows in of.values())
    ]
    parts = [HEAD, "## Every script\n", table(everywhere)]
    if RETIRED:
        parts.append("\nAccepted for older YAML files, and said to be ignored:\n")
        parts += [f"- `{key}`: {reason}." for key, reason in RETIRED.items()]
    for script, rows in of.items():
        folder, _, name = script.partition("/")
        twice = sum(other.endswith(f"/{name}") for other in STAGES) > 1
        cfg = STAGES[script].cfg
        without = f"Without `--cfg` it takes `{cfg}`." if cfg else ALONE
        if STAGES[script].flags:
            without = f"Without `--cfg` and flags it takes `{cfg}`; `--help` lists its flags."
        own = [row for row in rows if row not in everywhere]
        parts += [f"\n## {script if twice else name}\n", f"In `{folder}/`. {without}\n", table(own)]
    return "\n".join(parts) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add what is made here."""
    files.append(File.generated(config, "settings.md", content=settings_page()))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Docstrings name functions as Sphinx does: leave the name alone."""
    return re.sub(
        r":(?:func|class|meth|attr|mod):<code>~?([\w.]+)</code>", r"<code>\1</code>", html
    )
