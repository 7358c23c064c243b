"""Train the selector USL-T on ImageNet, ImageNet-100 or a folder of images in their layout.

    cd usl-t_pretraining
    python usl-t-imagenet-pretrain.py --cfg configs/ImageNet_usl-t_pretrain.yaml

A pretrained network stays as it is; three cosine heads on its features become clusters, and one
that empties takes half of the largest. Writes RUN_DIR/checkpoint.pth, from which
selective_labeling/usl-t-imagenet.py selects and a killed run goes on, metrics.csv and report.html.
Labels, where there are any, are only compared with. Many GPUs or processes: torchrun
--nproc-per-node 8 usl-t-imagenet-pretrain.py --cfg ….
"""

from usl.augment.moco import MocoTransform
from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import open_images, open_test_images
from usl.stages.table import stage
from usl.stages.uslt_train import Form, check_options, frozen_encoder, train


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    check_options(cfg)
    images = open_images(cfg, "train")
    test = open_test_images(cfg, images) or images
    # 1. A pretrained encoder, which stays as it is, with cosine heads on what it makes.
    encoder = frozen_encoder(cfg, images)

    # 2. Strong views as MoCo v2's.
    transform = MocoTransform(size=encoder.preprocess.side, flip=cfg.AUGMENT.FLIP)

    # 3. Neighbours agree on few, balanced clusters; one that empties takes half of the largest.
    network, source = encoder.for_training(), encoder.source
    form = Form(network, encoder.dim, transform, cosine=True, source=source)
    train(cfg, call, form, images, test)


if __name__ == "__main__":
    cli(main)
