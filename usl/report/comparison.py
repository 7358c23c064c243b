"""The report of a comparison of selectors: ranks, accuracies over budgets, and all tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from usl.artifacts import save_text
from usl.ranking import RIVAL, summarize
from usl.report.page import Table, write_page
from usl.report.pictures import svg_of, svg_uri

# Selectors with a colour of their own, beside random; the others are grey.
COLOURED = 5
# What is measured of a selection, and what it is called.
MEASURES = {
    "accuracy": "accuracy of a linear probe, %",
    "knn": "accuracy of a weighted 20-NN vote of the picks, %",
    "classes": "classes with a pick",
    "seconds": "seconds",
}


def rank_texts(ranks: pd.DataFrame) -> pd.DataFrame:
    """The rank table as texts, with its intervals; see :func:`usl.ranking.rank_table`."""
    texts = {"mean rank": [f"{rank:.1f}" for rank in ranks["rank"]]}
    for name, title in (("leader", "points behind the first"), (RIVAL, f"ahead of {RIVAL}")):
        if name in ranks:
            columns = ranks[[name, f"{name}_low", f"{name}_high"]].to_numpy()
            texts[title] = [f"{mean:.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in columns]
    return pd.DataFrame(texts, index=ranks.index)


def accuracy_figure(results: pd.DataFrame, order: Sequence[str], *, columns: int = 2) -> Any:
    """Accuracy over budgets, a panel a data set, with the standard deviation over seeds.

    Parameters
    ----------
    results : DataFrame
        As :func:`usl.ranking.rank_table` has it.
    order : sequence of str
        Selectors, the best first.
    columns : int
        Panels beside each other.

    Returns
    -------
    matplotlib Figure
    """
    from matplotlib.figure import Figure

    names = list(results["dataset"].unique())
    columns = min(columns, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(5 * columns, 3.4 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, panel in zip(names, axes, strict=False):
        _draw(panel, results[results["dataset"] == name], order)
        if len(names) > 1:
            panel.set_title(name, fontsize=11, parse_math=False)
    for panel in axes[len(names) :]:
        panel.set_visible(False)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    shown = sorted(handles, key=[*order, "others"].index)
    figure.legend(
        [handles[name] for name in shown], shown,
        loc="outside lower center", ncols=1 + 2 * columns, frameon=False, fontsize=8,
    )  # fmt: skip
    return figure


def write_comparison_report(
    path: Path,
    results: pd.DataFrame,
    ranks: pd.DataFrame,
    *,
    trainings: pd.DataFrame | None = None,
    title: str,
    facts: dict[str, Any],
    command: str,
    timings: dict[str, float],
) -> None:
    """Write ``report.html`` of a comparison, and ``accuracy.svg`` beside it.

    Parameters
    ----------
    path : Path
    results : DataFrame
        One row a selection: ``dataset``, ``selector``, ``budget``, ``seed`` and ``MEASURES``.
    ranks : DataFrame
        From :func:`usl.ranking.rank_table`, of those selectors that it ranks.
    trainings : DataFrame, optional
        One row a training on picks: as ``results``, with ``training`` and ``accuracy``.
    title, facts, command, timings
        See :func:`usl.report.page.write_page`.
    """
    order = list(ranks.index)
    save_text(path.with_name("accuracy.svg"), svg_of(accuracy_figure(results, order)))
    tables = [_table("Which selector leads", rank_texts(ranks))]
    for name, rows in results.groupby("dataset", sort=False):
        for measure, what in MEASURES.items():
            form = ".3g" if measure == "seconds" else ".1f"
            tables.append(_table(f"{name}: {what}", summarize(rows, measure=measure, form=form)))
    if trainings is not None:
        for pair, rows in trainings.groupby(["dataset", "training"], sort=False):
            tables.append(_table("{}: accuracy of {}, %".format(*pair), summarize(rows)))
    write_page(
        path,
        title=title,
        facts=facts,
        command=command,
        timings=timings,
        tables=tables,
        curves=[
            {"title": str(name), "picture": svg_uri(accuracy_figure(rows, order))}
            for name, rows in results.groupby("dataset", sort=False)
        ],
        curves_title="Accuracy over labels",
    )


def _draw(panel: Any, results: pd.DataFrame, order: Sequence[str]) -> None:
    coloured = [*order[:COLOURED], *([RIVAL] if RIVAL in order[COLOURED:] else [])]
    # The best on top.
    for name in reversed(list(order)):
        rows = results[results["selector"] == name].groupby("budget")["accuracy"]
        mean, spread = rows.mean(), rows.std().fillna(0)
        style: dict[str, Any] = {"color": "#c4c9cf", "linewidth": 0.8, "label": "others"}
        if name in coloured:
            color = "black" if name == RIVAL else f"C{order.index(name)}"
            style = {"color": color, "linewidth": 1.6, "label": name, "capsize": 2}
            style |= {"yerr": spread, "linestyle": ":" if name == RIVAL else "-"}
        panel.errorbar(mean.index, mean, marker="o", markersize=3, **style)
    panel.set_xscale("log")
    panel.set_xticks(mean.index, [str(budget) for budget in mean.index])
    panel.minorticks_off()
    panel.set_xlabel("labels")
    panel.set_ylabel("accuracy, %")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _table(title: str, texts: pd.DataFrame) -> Table:
    head = ["", *(f"{name} labels" if isinstance(name, int) else name for name in texts.columns)]
    return Table(title, head, texts.reset_index().values.tolist())
