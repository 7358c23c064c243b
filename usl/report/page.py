"""The page that every report is: ``template.html`` filled in, one file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from usl.artifacts import save_text

log = logging.getLogger("usl")


@dataclass(frozen=True)
class Table:
    """A table of texts under a heading."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def write_page(
    path: Path,
    *,
    title: str,
    facts: dict[str, Any],
    command: str,
    timings: dict[str, float],
    tables: Sequence[Table] = (),
    curves: Sequence[dict[str, str]] = (),
    curves_title: str = "How it went",
    selections: Sequence[dict[str, Any]] = (),
    color_by: str = "density",
    classes: Sequence[str] | None = None,
    coverage: dict[str, Any] | None = None,
    duplicates: dict[str, Any] | None = None,
) -> None:
    """Fill the template in; every name is escaped.

    Parameters
    ----------
    path : Path
    title : str
    facts : dict
        Shown as name and value.
    command : str
        What repeats the run.
    timings : dict of str to float
        Seconds by step.
    tables : sequence of Table
        Results, the first above everything else, the others below the curves.
    curves : sequence of dict
        With ``title`` and ``picture``, a data URI.
    curves_title : str
    selections : sequence of dict
        These and what follows are made in :mod:`usl.report.selection`.
    color_by : {"density", "confidence"}
        What the colour of their maps stands for.
    classes : sequence of str, optional
        Names for the class counts of ``selections``.
    coverage, duplicates : dict, optional
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files(__package__) / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("template.html").render(
        title=title,
        facts=facts,
        command=command,
        timings=timings,
        tables=tables,
        curves=curves,
        curves_title=curves_title,
        selections=selections,
        color_by=color_by,
        classes=classes,
        coverage=coverage,
        duplicates=duplicates,
    )
    save_text(path, page)
    log.info("wrote %s", path)
