"""Compare ways to choose images, by a linear classifier trained on the picks.

    cd selective_labeling && python compare.py --cfg configs/digits_compare.yaml

For every budget and seed: random picks, stratified ones (the same number from each class, which
needs all labels), k-means centres, the densest image of each cluster, and USL. A logistic
regression on the features of the picks is scored on the test images. Prints mean and standard
deviation over the seeds, and what the features are worth with all labels known (weighted 20-NN);
writes results.csv, one row a run, report.html, and every selection as
lists/<budget>/<dataset>_<selector>_seed<seed>.csv, which fine_tune.py and FixMatch take.
"""

import pandas as pd
import torch

from usl import steps
from usl.config import compare_defaults, parse
from usl.metrics import linear_probe, summarize, weighted_knn
from usl.report.page import Table
from usl.report.selection import SeedResult
from usl.run import cli, start
from usl.selection.baselines import central_picks, stratified_picks
from usl.selection.points import Points
from usl.selection.random import random_picks
from usl.selection.usl import Regularizer, pick


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(compare_defaults(), argv, script=__file__, doc=__doc__)
    regularizer = steps.regularizer_of(cfg.USL.REG)
    train, test = steps.evaluation.train_and_test(cfg)
    steps.check_settings(cfg, cfg.COMPARE.BUDGETS, len(train))
    listed = steps.listed_picks(cfg.COMPARE.LIST, train, cfg.COMPARE.BUDGETS, cfg.USL.SEEDS)
    encoder = steps.build_encoder(cfg.MODEL, cfg.DATASET.TRANSFORM_NAME, train)
    run = start(cfg, argv, script=__file__)

    # 1. Features of the images to choose from, and of those that test the choice.
    size = cfg.DATALOADER.BATCH_SIZE
    features = steps.image_features(run, encoder, train, batch_size=size)
    held_out = steps.image_features(run, encoder, test, batch_size=size, name="test_feats.npy")
    points = Points(features, run.device)
    density = steps.neighbors(run, points, k=cfg.USL.KNN_K, backend=cfg.KNN.BACKEND)

    known = torch.from_numpy(train.labels)
    rows, shown = [], []
    for budget in cfg.COMPARE.BUDGETS:
        for seed in cfg.USL.SEEDS:
            # 2. The picks of every selector.
            grouped = steps.clusters(
                run, points, budget=budget, seed=seed, iterations=cfg.USL.K_MEANS_NITERS
            )
            chosen = steps.picks(
                run, points, density, grouped, budget=budget, seed=seed, regularizer=regularizer
            )
            selections = {
                "random": random_picks(len(train), budget, seed=seed),
                "stratified": stratified_picks(known, budget, seed=seed),
                "k-means centres": central_picks(points, grouped)[:budget],
                "densest per cluster": pick(
                    points, density.density, grouped.labels, budget, Regularizer(rounds=1)
                ).indices,
                "USL": chosen.indices,
            }
            selections |= listed[budget, seed]
            steps.save_lists(run, train.name, selections, budget=budget, seed=seed)
            # 3. What they are worth.
            for selector, picks in selections.items():
                labels = train.labels[picks]
                accuracy = linear_probe(features[picks], labels, held_out, test.labels)
                rows.append((train.name, selector, budget, seed, accuracy))
            if budget == cfg.COMPARE.BUDGETS[0]:
                sizes = grouped.sizes[chosen.clusters].numpy()
                shown.append(SeedResult(seed, chosen.indices.numpy(), sizes))

    # 4. Mean and spread over the seeds, and the accuracy of a vote of all labels.
    answers = torch.from_numpy(test.labels)
    knn = weighted_knn(torch.from_numpy(features), known, torch.from_numpy(held_out), answers)
    print(f"weighted 20-NN accuracy of the features: {knn:.2f}")
    results = pd.DataFrame(rows, columns=["dataset", "selector", "budget", "seed", "accuracy"])
    run.save_text("results.csv", results.to_csv(index=False))
    table = summarize(results)
    print(table.to_string())
    head = ["", *(f"{budget} labels" for budget in table.columns)]
    steps.finish(
        run,
        shown,
        title=f"{len(shown[0].picks)} of {len(train):,} images worth labelling",
        facts={"Data set": train.name, "Encoder": cfg.MODEL.ARCH, "Test images": len(test)},
        images=train,
        points=points,
        shade=density.density,
        table=Table(head, table.reset_index().values.tolist()),
    )


if __name__ == "__main__":
    cli(main)
