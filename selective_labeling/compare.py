"""Compare ways to choose images, by what classifiers trained on the picks are worth.

    cd selective_labeling && python compare.py --cfg configs/digits_compare.yaml

For every budget and seed the picks of COMPARE.SELECTORS, on one data set and encoder or on all of
COMPARE.POOLS; stratified, the same number from each class, needs all labels. A logistic regression
and a nearest-neighbour vote on the features of the picks are tested; on request networks are
trained too (COMPARE.TRAIN). Prints mean and standard deviation over the seeds, and mean ranks and
paired differences with their intervals. Writes results.csv, one row a selection, ranks.csv,
trainings.csv, accuracy.svg, report.html, and every selection as
lists/<budget>/<dataset>_<selector>_seed<seed>.csv, which the trainers take. A killed run goes on
from its last selection.
"""

import pandas as pd

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.ranking import rank_table
from usl.stages import cells, compare
from usl.stages.inputs import begin
from usl.stages.table import settings_of, stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    benches = compare.open_benches(cfg, __file__, settings_of)
    run = begin(cfg, call)
    parts, results, trainings = [], [], []
    for bench in benches:
        # 1. Features of the images to choose from, and of those that test the choice.
        part = begin(bench.cfg, call, part=True) if cfg.COMPARE.POOLS else run
        parts.append(cells.embed(part, bench))
        accuracy = parts[-1].vote()
        print(f"{bench.name}: weighted 20-NN accuracy of the features: {accuracy:.2f}")

        # 2. The picks of every selector, and what they are worth.
        results.append(parts[-1].cells())
        run.save_text("results.csv", pd.concat(results).to_csv(index=False))

        # 3. The same, by networks that are trained on them.
        trainings += cells.train_on_picks(part, bench)
        if trainings:
            run.save_text("trainings.csv", pd.concat(trainings).to_csv(index=False))
        else:
            run.remove("trainings.csv")

    # 4. Which selector leads, over all data sets and budgets?
    found = pd.concat(results)
    ranks = rank_table(found[found["selector"].isin(compare.ranked(cfg))])
    run.save_text("ranks.csv", ranks.to_csv())
    cells.finish(run, found, ranks, trainings, parts)


if __name__ == "__main__":
    cli(main)
