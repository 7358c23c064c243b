"""Train the selector USL-T on ImageNet, ImageNet-100 or a folder of images in their layout.

    cd usl-t_pretraining
    python usl-t-imagenet-pretrain.py --cfg configs/ImageNet_usl-t_pretrain.yaml

A pretrained network stays as it is; three cosine heads on its features become clusters, and one
that empties takes half of the largest. Writes RUN_DIR/checkpoint.pth, from which
selective_labeling/usl-t-imagenet.py selects and a killed run goes on, metrics.csv and report.html.
Labels, where there are any, are only compared with. Many GPUs or processes: torchrun
--nproc-per-node 8 usl-t-imagenet-pretrain.py --cfg ….
"""

import torch

from usl import distributed, steps
from usl.config import parse, uslt_imagenet_pretrain_defaults
from usl.data.augment import MocoChain
from usl.models.resnet_cifar import EMBEDDING
from usl.models.uslt import UsltNetwork, new_heads
from usl.run import choose_device, cli, start
from usl.training.uslt import start_heads


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(uslt_imagenet_pretrain_defaults(), argv, script=__file__, doc=__doc__)
    steps.uslt.check_options(cfg)
    train = steps.open_images(cfg, "train")
    test = steps.open_test_images(cfg, train) or train
    uslt, size = cfg.USLT_PRETRAIN, cfg.DATALOADER.BATCH_SIZE
    plan = steps.plan_of(cfg, len(train), ema=uslt.EMA_DECAY)
    backbone, encoder = steps.uslt.pretext_of(cfg.MODEL)
    neighbors = steps.uslt.neighbors_of(cfg, len(train))

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        plan.check(len(train))
        # 1. Standard views from the middle of an image; strong ones by the chain of MoCo v2.
        views = steps.views_of(cfg, train, device=device)
        chain = MocoChain(size=train.side, flip=cfg.AUGMENT.FLIP)

        # 2. The pretrained encoder, and three cosine heads that start from the features of images.
        torch.manual_seed(cfg.SEED)
        heads = new_heads(EMBEDDING, uslt.NUM_SELECTED_SAMPLES, cosine=True)
        network = UsltNetwork(backbone, heads, frozen=uslt.UPDATE_HEAD_ONLY)
        network = network.to(device, memory_format=torch.channels_last)
        if steps.uslt.begins(cfg):
            start_heads(network, views, images=len(train), seed=cfg.SEED, batch=size)
        run = start(cfg, argv, script=__file__, save=not cfg.EVAL_ONLY)
        steps.uslt.note_inputs(run, train, neighbors, encoder)

        # 3. Neighbours agree (local loss) on few, balanced clusters (global loss); none stays
        #    empty.
        with run.timed("training"):
            trained = steps.uslt.train_heads(
                cfg, plan, network, views, chain, neighbors, train, test, reassign=True
            )

        # 4. How the images to choose from are clustered.
        steps.uslt.finish_training(run, trained, train, device)


if __name__ == "__main__":
    cli(main)
