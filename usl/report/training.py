"""The report of a training: curves, last numbers, timings, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from usl.report.page import Table, write_page
from usl.report.pictures import curve_uri


def write_training_report(
    path: Path,
    metrics: pd.DataFrame,
    *,
    title: str,
    facts: dict[str, Any],
    command: str,
    timings: dict[str, float],
    table: Table | None = None,
) -> None:
    """Write ``report.html`` of a training.

    Parameters
    ----------
    path : Path
    metrics : DataFrame
        One row an epoch, or a test; the axis is ``epoch``, or ``step`` where there is none. Every
        other column is a curve; columns ``name/part`` share one picture.
    title, facts, command, timings
        See :func:`usl.report.page.write_page`.
    table : Table, optional
        Results; by default the last numbers of the metrics.
    """
    axis = "epoch" if "epoch" in metrics else "step"
    curves: dict[str, list[str]] = {}
    for name in metrics.columns:
        if name not in ("epoch", "step"):
            curves.setdefault(name.partition("/")[0], []).append(name)
    known = {name: metrics[[axis, name]].dropna() for group in curves.values() for name in group}
    last = [
        [title.replace("_", " "), ", ".join(f"{known[n][n].iloc[-1]:.4g}" for n in names)]
        for title, names in curves.items()
    ]
    write_page(
        path,
        title=title,
        facts=facts | {f"{axis.capitalize()}s": int(metrics[axis].max())},
        command=command,
        timings=timings,
        tables=[table or Table("Last numbers", ["", "last"], last)],
        curves=[
            {
                "title": title.replace("_", " "),
                "picture": curve_uri(
                    {
                        name.partition("/")[2]: (known[name][axis], known[name][name])
                        for name in names
                    },
                    axis=axis,
                ),
            }
            for title, names in curves.items()
        ],
    )
