"""Fine-tune SimCLRv2 on the few labelled images of ImageNet or a folder in its layout, and test it.

    cd semisup-simclrv2 && python fine_tune.py --cfg configs/imagenet_usl-t_0.2.yaml

or with the flags of the original, each of which fills the setting that --help names. The labels are
those of FINETUNE.LABELED_INDICES_PATH: a .csv with Index, and perhaps Pseudolabel or Label, a .npy
of indices, or slice1; also looked for in ROOT_DIR/indexes. Trains once for each of FINETUNE.SEEDS.
Writes RUN_DIR/results.csv, one row a training, per_class.csv, report.html, and for every seed
seed<seed>/checkpoint.pth, from which a killed run goes on, metrics.csv, and
checkpoint_<RUN_NAME>.pth.tar and model_best_<RUN_NAME>.pth.tar in the original's layout. The last
line it prints is the accuracy on the test images. Many GPUs or processes:
torchrun --nproc-per-node 8 fine_tune.py --cfg ….
"""

from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages import simclrv2
from usl.stages.evaluation import evaluate, open_splits
from usl.stages.finetune import trials_of
from usl.stages.table import stage


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    if simclrv2.spread(cfg, call):
        return
    train, test = open_splits(cfg)
    # 1. The pretrained network with the first block of its head, and a fresh linear classifier;
    #    cross-entropy on random views of the labelled images, by LARS.
    method, source = simclrv2.method_of(cfg, train)

    # 2. Once for each seed, on its labelled images.
    trials = trials_of(cfg, train, fill=False)

    # 3. How many of the test images does it get right, and of which classes?
    evaluate(
        cfg,
        call,
        method,
        trials,
        (train, test),
        title=f"Fine-tuning with {trials[0].labelled} of {train.name}",
        facts={"Data set": train.name, "Network": cfg.MODEL.ARCH},
        inputs={"encoder": source},
    )


if __name__ == "__main__":
    cli(main)
