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

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import fixmatch
from usl.stages.evaluation import evaluate, open_splits
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    train, test = open_splits(cfg)
    # 1. A network, new or pretrained. Labels, and its own confident answers to weak views of all
    #    training images, train strong views of these.
    method = fixmatch.method_of(cfg, train)

    # 2. Once for each seed, on its labelled images.
    trials = fixmatch.trials_of(cfg, train)

    # 3. How many of the test images does the average of its weights get right?
    evaluate(
        cfg,
        call,
        method,
        trials,
        (train, test),
        title=f"FixMatch with {trials[0].labelled} of {train.name}",
        facts={"Data set": train.name, "Network": cfg.MODEL.ARCH},
    )


if __name__ == "__main__":
    cli(main)
