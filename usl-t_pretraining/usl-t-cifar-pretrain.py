"""Train the selector USL-T on CIFAR-10, CIFAR-100, Fashion-MNIST or digits.

    cd usl-t_pretraining && python usl-t-cifar-pretrain.py --cfg configs/cifar10_usl-t_pretrain.yaml

A pretrained network gets three heads, whose outputs become clusters, one for every image that can
be labelled. Writes RUN_DIR/checkpoint.pth, from which selective_labeling/usl-t-cifar.py selects and
a killed run goes on, metrics.csv and report.html. Labels, where there are any, are only compared
with. Many GPUs or processes: torchrun --nproc-per-node 2 usl-t-cifar-pretrain.py --cfg ….
"""

import torch

from usl import distributed, steps
from usl.config import parse, uslt_pretrain_defaults
from usl.data.strong import ScanChain
from usl.data.transforms import NORMALIZATION
from usl.models.uslt import UsltNetwork, new_heads
from usl.run import choose_device, cli, start


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(uslt_pretrain_defaults(), argv, script=__file__, doc=__doc__)
    steps.uslt.check_options(cfg)
    train, test = steps.evaluation.train_and_test(cfg)
    uslt, transform = cfg.USLT_PRETRAIN, cfg.DATASET.TRANSFORM_NAME
    plan = steps.plan_of(cfg, len(train), ema=uslt.EMA_DECAY)
    backbone, encoder = steps.load_backbone_of(cfg.MODEL)
    neighbors = steps.uslt.neighbors_of(cfg, len(train))

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        plan.check(len(train))
        # 1. The pretrained backbone, and three linear heads of one output a label.
        torch.manual_seed(cfg.SEED)
        heads = new_heads(backbone.dim, uslt.NUM_SELECTED_SAMPLES, cosine=False)
        network = UsltNetwork(backbone, heads, frozen=uslt.UPDATE_HEAD_ONLY)
        network = network.to(device, memory_format=torch.channels_last)

        # 2. Standard views as they are; strong ones with SCAN's augmentation and a cut-out, which
        #    is 0 once normalised.
        views = steps.views_of(cfg, train, device=device)
        chain = ScanChain(flip=cfg.AUGMENT.FLIP, fill=NORMALIZATION[transform][0])
        run = start(cfg, argv, script=__file__, save=not cfg.EVAL_ONLY)
        steps.uslt.note_inputs(run, train, neighbors, encoder)

        # 3. Neighbours agree (local loss) on few, confident, balanced clusters (global loss).
        with run.timed("training"):
            trained = steps.uslt.train_heads(
                cfg, plan, network, views, chain, neighbors, train, test, reassign=False
            )

        # 4. How the images to choose from are clustered.
        steps.uslt.finish_training(run, trained, train, device)


if __name__ == "__main__":
    cli(main)
