"""Train the selector USL-T on CIFAR-10, CIFAR-100, Fashion-MNIST or digits.

    cd usl-t_pretraining && python usl-t-cifar-pretrain.py --cfg configs/cifar10_usl-t_pretrain.yaml

A pretrained network gets three heads, whose outputs become clusters, one for every image that can
be labelled. Writes RUN_DIR/checkpoint.pth, from which selective_labeling/usl-t-cifar.py selects and
a killed run goes on, metrics.csv and report.html. Labels, where there are any, are only compared
with. Many GPUs or processes: torchrun --nproc-per-node 2 usl-t-cifar-pretrain.py --cfg ….
"""

from usl.augment.randaugment import ScanTransform
from usl.cli import Call, cli
from usl.config.parse import CfgNode
from usl.stages.inputs import backbone_of, open_in_memory, preprocess_of
from usl.stages.table import stage
from usl.stages.uslt_train import Form, check_options, train


@stage(__file__, __doc__)
def main(cfg: CfgNode, call: Call) -> None:
    """Run the stage."""
    check_options(cfg)
    images = open_in_memory(cfg, "train", advice="or use usl-t-imagenet-pretrain.py")
    test = open_in_memory(cfg, "test")
    # 1. A pretrained network, all of which is trained, with linear heads.
    backbone, dim, source = backbone_of(cfg, images)

    # 2. Strong views with SCAN's augmentation and a cut-out, which is 0 once normalised.
    transform = ScanTransform(flip=cfg.AUGMENT.FLIP, fill=preprocess_of(cfg, images).mean)

    # 3. Neighbours agree on few, confident, balanced clusters.
    form = Form(backbone, dim, transform, cosine=False, source=source)
    train(cfg, call, form, images, test)


if __name__ == "__main__":
    cli(main)
