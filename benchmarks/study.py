"""The tables and the figure of the study, as docs/results.md has them.

    python benchmarks/study.py selective_labeling/saved/study/results.csv --figure study.svg

Prints Markdown of what compare.py measured: mean ranks over all data sets, over those on halves of
which this project's rule was found and over the others, and the accuracies of each data set.
"""

import argparse
from pathlib import Path

import pandas as pd

from usl.ranking import rank_table, summarize
from usl.report.comparison import accuracy_figure, rank_texts
from usl.report.pictures import svg_of
from usl.selectors.registry import SELECTORS

TITLES = {
    "digits": "digits",
    "fashion-mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10-lite0": "CIFAR-10, encoder trained with ImageNet's labels",
    "imagenette": "Imagenette",
    "imagenette-lite0": "Imagenette, encoder trained with ImageNet's labels",
}
FOUND_ON = ("digits", "imagenette-lite0")
NEEDS_LABELS = {s.title for s in SELECTORS.values() if s.uses_labels}
# The paper's rule has a colour of its own among the leaders.
SHOWN, COLOURS = "USL", 5


def markdown(table: pd.DataFrame) -> str:
    """A table of texts, its index first."""
    lines = [["", *map(str, table.columns)], ["---"] * (table.shape[1] + 1)]
    lines += [
        [str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def of_one(rows: pd.DataFrame) -> pd.DataFrame:
    """Accuracies of a data set by budget, the best in bold, and ranks; those with labels last."""
    ranked = rows[~rows["selector"].isin(NEEDS_LABELS)]
    ranks, texts = rank_table(ranked), summarize(rows)
    for budget in texts:
        means = texts[budget].str.split().str[0].astype(float)
        best = texts.index.isin(ranks.index) & (means == means[ranks.index].max())
        texts[budget] = texts[budget].mask(best, "**" + texts[budget] + "**")
    order = [*ranks.index, *texts.index.difference(ranks.index)]
    titles = {name: f"{name} (needs all labels)" for name in NEEDS_LABELS}
    return texts.join(rank_texts(ranks)).loc[order].fillna("").rename(index=titles)


def overall(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean ranks over all data sets, where this project's rule was found and not, and of each."""
    table = rank_texts(rank_table(rows))
    parts = {"where ours was found": rows["dataset"].isin(FOUND_ON)}
    parts["elsewhere"] = ~parts["where ours was found"]
    parts |= {TITLES.get(n, n): rows["dataset"] == n for n in rows["dataset"].unique()}
    for title, part in parts.items():
        if part.any():
            table[title] = rank_table(rows[part])["rank"].map("{:.1f}".format)
    return table


def main() -> None:
    """Print the tables, and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", nargs="+", help="results.csv of compare.py")
    parser.add_argument("--figure", help="an SVG")
    given = parser.parse_args()
    found = pd.concat(pd.read_csv(path) for path in given.results)
    ranked = found[~found["selector"].isin(NEEDS_LABELS)]
    pairs = ranked.groupby(["dataset", "budget"]).ngroups
    print(f"{pairs} tables\n\n{markdown(overall(ranked))}")
    for name, rows in found.groupby("dataset", sort=False):
        print(f"\n{TITLES.get(str(name), name)}\n\n{markdown(of_one(rows))}")
    if given.figure:
        order = [name for name in rank_table(ranked).index if name != SHOWN]
        order.insert(COLOURS - 1, SHOWN)
        named = found.assign(dataset=found["dataset"].map(lambda name: TITLES.get(name, name)))
        Path(given.figure).write_text(svg_of(accuracy_figure(named, order, columns=3)))


if __name__ == "__main__":
    main()
