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
) -> None:
    """Write ``report.html`` of a training.

    Parameters
    ----------
    path : Path
    metrics : DataFrame
        One row an epoch; ``epoch`` and ``step`` are axes, every other column is a curve.
    title, facts, command, timings
        See :func:`usl.report.page.write_page`.
    """
    names = [name for name in metrics.columns if name not in ("epoch", "step")]
    known = {name: metrics[["epoch", name]].dropna() for name in names}
    last = [[name.replace("_", " "), f"{known[name][name].iloc[-1]:.4g}"] for name in names]
    write_page(
        path,
        title=title,
        facts=facts | {"Epochs": int(metrics["epoch"].max())},
        command=command,
        timings=timings,
        table=Table(["", "last"], last),
        curves=[
            {
                "title": name.replace("_", " "),
                "picture": curve_uri(known[name]["epoch"].to_numpy(), known[name][name].to_numpy()),
            }
            for name in names
        ],
    )
