"""CLIP and MoCo from checkpoints in their layouts to features of JPEGs: as by hand."""

import numpy as np
import pytest
import torch
from helpers import make_folder, random_statistics
from oracles import clip
from PIL import Image
from torchvision import transforms as T
from torchvision.models import resnet50

from usl.data.datasets import open_dataset
from usl.encoders.registry import Request, build_encoder
from usl.inference import extract
from usl.models.resnet_imagenet import MocoEncoder

pytestmark = pytest.mark.slow
NAMES = {f"{kind}/{i}.jpg": ("RGB", (60 + 7 * i, 90 - 5 * i)) for kind in "ab" for i in range(3)}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_dataset("imagenet", make_folder(tmp_path_factory.mktemp("jpegs"), NAMES))


@pytest.fixture(scope="module")
def weights():
    return clip.made_up()


def through(transform, images):
    pictures = [Image.open(images.folder / path).convert("RGB") for path in images.paths]
    return torch.stack([transform(picture) for picture in pictures])


def found(images, name, path, **options):
    encoder = build_encoder(name, Request(images=images, checkpoint=lambda: path, **options))
    return encoder, extract(encoder.network, images, preprocess=encoder.preprocess, batch_size=4)


@pytest.mark.parametrize(
    ("layout", "output"), [("openai", "head"), ("whole model", "head"), ("openai", "backbone")]
)
def test_clip(images, weights, tmp_path, layout, output):
    visual = {f"visual.{name}": value for name, value in weights.items()}
    if layout == "whole model":
        # With the text tower, which is left out.
        visual |= {
            "transformer.resblocks.0.ln_1.weight": torch.zeros(5),
            "logit_scale": torch.ones(1),
        }
        visual |= {
            "token_embedding.weight": torch.zeros(3, 5),
            "positional_embedding": torch.ones(2),
        }
    torch.save(visual if layout == "openai" else {"state_dict": visual}, tmp_path / "clip.pt")
    transform = T.Compose(
        [
            T.Resize(224, T.InterpolationMode.BICUBIC),
            T.CenterCrop(224),
            T.ToTensor(),
            T.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    seen = through(transform, images)
    expected = clip.embed(seen, weights, heads=12, projected=output == "head")
    # The original names ImageNet's transform beside CLIP.
    options = {"transform": "imagenet", "output": output}
    encoder, features = found(images, "CLIP-ViT-B/32", tmp_path / "clip.pt", **options)
    assert encoder.scale and encoder.dim == features.shape[1] == (512 if output == "head" else 768)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_moco(images, tmp_path):
    torch.manual_seed(0)
    network = random_statistics(MocoEncoder()).eval()
    state = {f"module.encoder_q.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 800, "arch": "resnet50"}, tmp_path / "moco.pth.tar")
    theirs = resnet50().eval()
    theirs.fc = torch.nn.Identity()
    body = {k: v for k, v in network.state_dict().items() if not k.startswith("fc.")}
    theirs.load_state_dict(body)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = T.Compose([T.Resize(256), T.CenterCrop(224), T.ToTensor(), T.Normalize(mean, std)])
    with torch.no_grad():
        body = theirs(through(transform, images))
        hidden = (body @ network.fc[0].weight.T + network.fc[0].bias).clamp_min(0)
        out = hidden @ network.fc[2].weight.T + network.fc[2].bias
    expected = out / out.norm(dim=1, keepdim=True)
    encoder, features = found(images, "resnet50", tmp_path / "moco.pth.tar", transform="imagenet")
    assert not encoder.scale and encoder.dim == 128
    np.testing.assert_allclose(features, expected, atol=1e-5)
