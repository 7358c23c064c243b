"""FixMatch on the few labelled images and all others: what the choice of labels is worth.

    cd semisup-fixmatch-cifar && python train.py --cfg configs/cifar10_usl_fixmatch.yaml

The labels are those of FIXMATCH.LABELED_INDICES_PATH: a .npy of indices, a .csv with Index, or with
Index,Label for answers of your own, a published list such as released/cifar10_usl_seed1.csv, or
slice1. Trains once for each of FIXMATCH.SEEDS. Writes RUN_DIR/results.csv, one row a training
(last20: mean accuracy of the last 20 tests), report.html, and for every seed
seed<seed>/checkpoint.pth, from which a killed run goes on, metrics.csv, and checkpoint.pth.tar and
model_best.pth.tar in FixMatch-pytorch's layout. The last line it prints is the accuracy on the test
images. Many GPUs or processes: torchrun --nproc-per-node 2 train.py --cfg ….
"""

import torch

from usl import distributed, steps
from usl.config import fixmatch_defaults, parse
from usl.data.strong import RandAugmentChain, WeakChain
from usl.data.views import Views
from usl.run import choose_device, cli, start
from usl.training.fixmatch import FixMatch, exporting, fixmatch_step
from usl.training.loop import fit
from usl.training.supervised import Tester


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(fixmatch_defaults(), argv, script=__file__, doc=__doc__)
    train, test = steps.evaluation.train_and_test(cfg)
    transform, fixmatch = cfg.DATASET.TRANSFORM_NAME, cfg.FIXMATCH
    options = FixMatch(
        cfg.DATALOADER.BATCH_SIZE,
        fixmatch.MU,
        fixmatch.THRESHOLD,
        fixmatch.TEMPERATURE,
        fixmatch.LAMBDA_U,
    )
    weak, strong = WeakChain(cfg.AUGMENT.FLIP), RandAugmentChain(cfg.AUGMENT.FLIP)
    build = steps.evaluation.fixmatch_network(cfg.MODEL, len(train.classes))
    trials = steps.evaluation.fixmatch_trials(cfg, train)

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        options.check_processes()
        for trial in trials:
            trial.plan.check(trial.images)
        views = Views(train, transform, seed=0, device=device, backend=cfg.AUGMENT.BACKEND)
        run = start(cfg, argv, script=__file__)
        lists = {trial.seed: trial.labelled.fingerprint() for trial in trials}
        run.note(dataset=train.name, images=train.fingerprint(), labelled=lists)

        outcomes = []
        for trial in trials:
            steps.evaluation.say_remarks(trial.labelled)
            # 1. A network, new or pretrained.
            torch.manual_seed(trial.seed)
            network = build().to(device, memory_format=torch.channels_last)

            # 2. Labels, and the network's own confident answers to weak views of all training
            #    images, train strong views of these.
            step = fixmatch_step(
                views.reseeded(trial.seed), weak, strong, trial.labelled, options,
                seed=trial.seed, numbers=trial.images, compiled=fixmatch.COMPILE,
            )  # fmt: skip
            tester = Tester(test, transform, batch_size=512, device=device)
            folder = trial.folder(run)
            with run.timed(f"training and tests, seed {trial.seed}"):
                trained = fit(
                    network,
                    step,
                    steps.sgd(network, cfg.OPTIMIZER, decay_all=False),
                    trial.plan,
                    images=trial.images,
                    device=device,
                    folder=folder,
                    settings=trial.settings(cfg, train),
                    resume=cfg.RESUME == "auto",
                    evaluate=tester,
                    export=exporting(folder) if folder else None,
                )

            # 3. How many of the test images does the average of its weights get right?
            outcomes.append(steps.evaluation.outcome_of(trial, trained, tester, last=20))
            steps.evaluation.save_outcomes(run, train.name, outcomes)

        # 4. Mean and spread over the seeds.
        steps.evaluation.finish_evaluation(
            run,
            outcomes,
            classes=train.classes,
            title=f"FixMatch with {len(trials[0].labelled)} labels of {train.name}",
            facts={"Data set": train.name, "Network": cfg.MODEL.ARCH},
        )


if __name__ == "__main__":
    cli(main)
