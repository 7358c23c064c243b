"""Compare ways to choose images, by a linear classifier trained on the picks.

    cd selective_labeling && python compare.py --cfg configs/digits_compare.yaml

For every budget and seed the picks of COMPARE.SELECTORS; those called stratified, the same number
from each class, need all labels. A logistic regression on the features of the picks is scored on
the test images. Prints mean and standard deviation over the seeds, and what the features are worth
with all labels known (weighted 20-NN); writes results.csv, one row a run, report.html, and every
selection as lists/<budget>/<dataset>_<selector>_seed<seed>.csv, which the trainers take.
"""

import pandas as pd
import torch

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.geometry.points import Points
from usl.metrics import linear_probe, summarize, weighted_knn
from usl.report.page import Table
from usl.report.selection import Result
from usl.selectors.registry import Context, selectors_named
from usl.stages import compare, report, selection, usl
from usl.stages.inputs import begin, encoder_of
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    train, test = compare.open_pool_and_tests(cfg)
    usl.check_settings(cfg, cfg.COMPARE.BUDGETS, len(train))
    selectors = selectors_named(cfg.COMPARE.SELECTORS)
    listed = compare.listed_picks(cfg.COMPARE.LIST, train, cfg.COMPARE.BUDGETS, cfg.USL.SEEDS)
    encoder = encoder_of(cfg, train)
    run = begin(cfg, call)

    # 1. Features of the images to choose from, and of those that test the choice.
    features = selection.image_features(run, cfg, encoder, train)
    held_out = selection.image_features(run, cfg, encoder, test, name="test_feats.npy")
    points, known = Points(features.values, run.device), torch.from_numpy(train.labels)
    k = selection.neighbors_for(cfg.USL.KNN_K, len(train), max(cfg.COMPARE.BUDGETS))
    density = selection.neighbors(run, features, points, k=k, backend=cfg.KNN.BACKEND)
    context = Context(
        points,
        density.density,
        compare.clusterer(run, cfg, features, points, dataset=train.name),
        usl.regularizer_of(cfg.USL.REG),
        known,
    )
    rows, shown = [], []
    for budget in cfg.COMPARE.BUDGETS:
        for seed in cfg.USL.SEEDS:
            # 2. The picks of every selector.
            selections = {
                selector.title: selector(context, budget, seed=seed) for selector in selectors
            }
            selections |= listed[budget, seed]
            compare.save_lists(run, train.name, selections, budget=budget, seed=seed)
            # 3. What they are worth.
            for title, picks in selections.items():
                labels = train.labels[picks]
                accuracy = linear_probe(
                    features.values[picks], labels, held_out.values, test.labels
                )
                rows.append((train.name, title, budget, seed, accuracy))
            # The last selector's are kept, and shown.
            title = selectors[-1].title
            picks, grouped = selections[title], context.clusters(budget, seed)
            source = {"features": features.fingerprint, "selector": title}
            selection.save_picks(run, picks.numpy(), budget=budget, seed=seed, source=source)
            if budget == cfg.COMPARE.BUDGETS[0]:
                sizes = grouped.sizes[grouped.labels[picks]].numpy()
                shown.append(Result(f"{title}, seed {seed}", picks.numpy(), sizes))

    # 4. Mean and standard deviation over seeds, and the accuracy of a vote of all labels.
    answers = torch.from_numpy(test.labels)
    pool, tests = (torch.from_numpy(found.values) for found in (features, held_out))
    print(
        f"weighted 20-NN accuracy of the features: {weighted_knn(pool, known, tests, answers):.2f}"
    )
    results = pd.DataFrame(rows, columns=["dataset", "selector", "budget", "seed", "accuracy"])
    run.save_text("results.csv", results.to_csv(index=False))
    table = summarize(results)
    print(table.to_string())
    head = ["", *(f"{budget} labels" for budget in table.columns)]
    report.finish(
        run,
        shown,
        title=f"{len(shown[0].picks)} of {len(train):,} images worth labelling",
        facts={"Data set": train.name, "Encoder": encoder, "Test images": len(test)},
        images=train,
        points=points,
        color=density.density,
        table=Table("What the choice was worth", head, table.reset_index().values.tolist()),
    )


if __name__ == "__main__":
    cli(main)
