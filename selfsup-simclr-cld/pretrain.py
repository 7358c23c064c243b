"""Train an encoder on unlabelled images: SimCLR or, with CLD: True, cross-level discrimination.

    cd selfsup-simclr-cld && python pretrain.py --cfg configs/digits_simclr.yaml

Writes RUN_DIR/encoder.pth, which MODEL.PRETRAIN_PATH of the other stages takes (in the layout of
SCAN's pretext checkpoints, or of CLD's), checkpoint.pth, from which a killed run goes on,
metrics.csv and report.html. Labels, where there are any, are only used to watch: kNN accuracy.
Many GPUs or processes: torchrun --nproc-per-node 2 pretrain.py --cfg ….
"""

import torch

from usl import distributed, steps
from usl.config import parse, pretrain_defaults
from usl.models.encoders import new_network, save_encoder
from usl.run import choose_device, cli, start
from usl.training.loop import fit
from usl.training.pretraining import Contrast, contrastive_step, monitor


def main(argv: list[str] | None = None) -> None:
    """Run the stage."""
    cfg = parse(pretrain_defaults(), argv, script=__file__, doc=__doc__)
    train = steps.open_images(cfg, "train")
    test = steps.open_test_images(cfg, train)
    batch_size = cfg.DATALOADER.BATCH_SIZE
    plan = steps.plan_of(cfg, len(train), ema=cfg.EMA_DECAY)
    contrast = Contrast(
        cfg.SIMCLR.TEMPERATURE, cfg.CLD, cfg.GROUP.COUNT, cfg.GROUP.TEMPERATURE, cfg.GROUP.WEIGHT
    )
    neighbors = None
    if cfg.SIMCLR.TOPK_NEIGHBORS_PATH:
        neighbors = steps.read_neighbors(
            cfg.SIMCLR.TOPK_NEIGHBORS_PATH,
            "SIMCLR.TOPK_NEIGHBORS_PATH",
            images=len(train),
            count=cfg.SIMCLR.NUM_NEIGHBORS,
        )
    chain = steps.moco_chain(cfg.AUGMENT, train.side)

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        plan.check(len(train))
        contrast.check(batch_size // cfg.ACCUMULATE)
        # 1. A network with a head (two for CLD), and two random views of each image.
        torch.manual_seed(cfg.SEED)
        network = new_network(cfg.MODEL.ARCH, cfg.MODEL.WIDTH, cfg.MODEL.DEPTH, cld=cfg.CLD)
        network = network.to(device, memory_format=torch.channels_last)
        views = steps.views_of(cfg, train, device=device)
        run = start(cfg, argv, script=__file__)
        run.note(dataset=train.name, size=len(train), images=train.fingerprint())

        # 2. Each view must find the other among all images of the batch.
        with run.timed("training"):
            trained = fit(
                network,
                contrastive_step(views, chain, contrast, seed=cfg.SEED, neighbors=neighbors),
                steps.sgd(network, cfg.OPTIMIZER),
                plan,
                images=len(train),
                device=device,
                folder=steps.training_folder(cfg),
                settings=steps.training_settings(cfg, train),
                resume=cfg.RESUME == "auto",
                evaluate=monitor(train, test, views, chain, batch_size=batch_size),
            )

        # 3. Keep the encoder; show how it came about.
        if run.folder is not None:
            path = run.folder / "encoder.pth"
            save_encoder(path, trained.network, cld=cfg.CLD, half=cfg.HALF_ENCODER)
        steps.finish_training(
            run,
            trained.metrics,
            title=f"An encoder of {train.name}",
            facts={"Data set": train.name, "Images": len(train), "Network": cfg.MODEL.ARCH},
        )


if __name__ == "__main__":
    cli(main)
