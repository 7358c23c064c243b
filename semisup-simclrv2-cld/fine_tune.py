"""Train a linear layer on the few labelled images and test it: SimCLRv2-CLD, or SimCLR.

    cd semisup-simclrv2-cld && python fine_tune.py --cfg configs/cifar10_usl-t_finetune.yaml

The labels are those of FINETUNE.LABELED_INDICES_PATH: a .npy of indices, a .csv with Index, or with
Index,Label for answers of your own, a published list such as released/cifar10_usl-t.csv, or slice1.
Trains once for each of FINETUNE.SEEDS. Writes RUN_DIR/results.csv, one row a training, report.html,
and for every seed seed<seed>/checkpoint.pth, from which a killed run goes on, and metrics.csv.
The last line it prints is the accuracy on the test images.
"""

import copy

import torch

from usl import distributed, steps
from usl.config import finetune_defaults, parse
from usl.data.views import Views
from usl.models.classifier import Classifier
from usl.run import choose_device, cli, start
from usl.training.loop import fit
from usl.training.supervised import Tester, supervised_step


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(finetune_defaults(), argv, script=__file__, doc=__doc__)
    train, test = steps.evaluation.train_and_test(cfg)
    transform, batch_size = cfg.DATASET.TRANSFORM_NAME, cfg.DATALOADER.BATCH_SIZE
    chain = steps.evaluation.training_chain(transform, cfg.AUGMENT)
    pretrained, encoder = steps.load_backbone_of(cfg.MODEL)
    trials = steps.evaluation.finetune_trials(cfg, train)

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        for trial in trials:
            trial.plan.check(trial.images)
        views = Views(train, transform, seed=0, device=device, backend=cfg.AUGMENT.BACKEND)
        run = start(cfg, argv, script=__file__)
        lists = {trial.seed: trial.labelled.fingerprint() for trial in trials}
        run.note(dataset=train.name, images=train.fingerprint(), encoder=encoder, labelled=lists)

        outcomes = []
        for trial in trials:
            steps.evaluation.say_remarks(trial.labelled)
            # 1. A fresh linear layer on the pretrained network, which stays as it is but for the
            #    statistics of batch norm.
            torch.manual_seed(trial.seed)
            backbone = copy.deepcopy(pretrained)
            network = Classifier(backbone, len(train.classes), cld=cfg.MODEL.USE_CLD)
            if cfg.FINETUNE.FREEZE_BACKBONE:
                network.freeze_backbone()
            network = network.to(device, memory_format=torch.channels_last)

            # 2. Cross-entropy on the labelled images, again and again, each time another view.
            tester = Tester(test, transform, batch_size=batch_size, device=device)
            with run.timed(f"training and tests, seed {trial.seed}"):
                trained = fit(
                    network,
                    supervised_step(views.reseeded(trial.seed), chain, trial.labelled),
                    steps.sgd(network, cfg.OPTIMIZER),
                    trial.plan,
                    images=trial.images,
                    device=device,
                    folder=trial.folder(run),
                    settings=trial.settings(cfg, train),
                    resume=cfg.RESUME == "auto",
                    evaluate=tester,
                )

            # 3. How many of the test images does it get right?
            outcomes.append(steps.evaluation.outcome_of(trial, trained, tester))
            steps.evaluation.save_outcomes(run, train.name, outcomes)

        # 4. Mean and spread over the seeds.
        steps.evaluation.finish_evaluation(
            run,
            outcomes,
            classes=train.classes,
            title=f"What {len(trials[0].labelled)} labels of {train.name} are worth",
            facts={"Data set": train.name, "Network": cfg.MODEL.ARCH, "CLD": cfg.MODEL.USE_CLD},
        )


if __name__ == "__main__":
    cli(main)
