"""Train an encoder on unlabelled images: SimCLR or, with CLD: True, cross-level discrimination.

    cd selfsup-simclr-cld && python pretrain.py --cfg configs/digits_simclr.yaml

Writes RUN_DIR/encoder.pth, which MODEL.PRETRAIN_PATH of the other stages takes (in the layout of
SCAN's pretext checkpoints, or of CLD's), checkpoint.pth, from which a killed run goes on,
metrics.csv and report.html. Labels, where there are any, are only used to evaluate: kNN accuracy.
Many GPUs or processes: torchrun --nproc-per-node 2 pretrain.py --cfg ….
"""

import torch

from usl import distributed
from usl.cli import Call, choose_device, cli
from usl.config.parse import CfgNode
from usl.encoders.checkpoints import save_encoder
from usl.stages import pretrain, training
from usl.stages.inputs import begin, open_images, open_test_images, preprocess_of, views_of
from usl.stages.table import stage
from usl.training.loop import fit
from usl.training.pretraining import PretrainingEvaluator, contrastive_step


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    train = open_images(cfg, "train")
    test = open_test_images(cfg, train)
    batch_size, seed = cfg.DATALOADER.BATCH_SIZE, cfg.SEED
    plan = training.plan_of(cfg, len(train), ema=cfg.EMA_DECAY)
    contrast = pretrain.contrast_of(cfg)
    neighbors = pretrain.neighbors_of(cfg.SIMCLR, len(train))
    transform = training.moco_transform(cfg.AUGMENT, preprocess_of(cfg, train).side)

    with distributed.processes(choose_device(cfg.DEVICE)) as device:
        plan.check(len(train))
        contrast.check(batch_size // cfg.ACCUMULATE)
        # 1. A network with a head (two for CLD), and two random views of each image.
        torch.manual_seed(seed)
        network = pretrain.network_of(cfg, transform.size)
        network = network.to(device, memory_format=torch.channels_last)
        views = views_of(cfg, train, device=device)
        optimizer = training.sgd(network, cfg.OPTIMIZER)
        training.check_own_checkpoint(cfg, plan, train)
        training.check_checkpoint(cfg, seed, network, optimizer)
        run = begin(cfg, call)
        run.note(dataset=train.name, size=len(train), images=train.fingerprint())

        # 2. Each view must find the other among all images of the batch.
        with run.timed("training"):
            trained = fit(
                network,
                contrastive_step(views, transform, contrast, seed=seed, neighbors=neighbors),
                optimizer,
                plan,
                images=len(train),
                device=device,
                folder=training.training_folder(cfg),
                settings=training.training_settings(cfg, train),
                resume=training.resume_of(cfg, seed),
                evaluate=PretrainingEvaluator(
                    train, test, views, transform, seed=seed, batch_size=batch_size
                ),
            )

        # 3. Keep the encoder; show how it came about.
        if run.folder is not None:
            path = run.folder / "encoder.pth"
            save_encoder(path, trained.network, cld=cfg.CLD, half=cfg.HALF_ENCODER)
        training.finish_training(
            run,
            trained.metrics,
            title=f"An encoder of {train.name}",
            facts={"Data set": train.name, "Images": len(train), "Network": cfg.MODEL.ARCH},
        )


if __name__ == "__main__":
    cli(main)
