"""Train a linear layer on the few labelled images and test it: SimCLRv2-CLD, or SimCLR.

    cd semisup-simclrv2-cld && python fine_tune.py --cfg configs/cifar10_usl-t_finetune.yaml

The labels are those of FINETUNE.LABELED_INDICES_PATH: a .npy of indices, a .csv with Index, or with
Index,Label for answers of your own, a published list such as released/cifar10_usl-t.csv, or slice1.
Trains once for each of FINETUNE.SEEDS. Writes RUN_DIR/results.csv, one row a training, report.html,
and for every seed seed<seed>/checkpoint.pth, from which a killed run goes on, and metrics.csv.
The last line it prints is the accuracy on the test images.
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import finetune
from usl.stages.evaluation import evaluate, open_splits
from usl.stages.inputs import backbone_of
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    train, test = open_splits(cfg)
    # 1. A fresh linear layer on the pretrained network, which stays as it is but for the statistics
    #    of batch norm; cross-entropy on the labelled images, again and again, each time another
    #    view.
    pretrained, dim, source = backbone_of(cfg, train)
    method = finetune.method_of(cfg, train, pretrained, dim)

    # 2. Once for each seed, on its labelled images.
    trials = finetune.trials_of(cfg, train)

    # 3. How many of the test images does it get right?
    evaluate(
        cfg,
        call,
        method,
        trials,
        (train, test),
        title=f"What {trials[0].labelled} of {train.name} are worth",
        facts={"Data set": train.name, "Network": cfg.MODEL.ARCH, "CLD": cfg.MODEL.USE_CLD},
        inputs={"encoder": source},
    )


if __name__ == "__main__":
    cli(main)
