"""Encoders of timm and torchvision: what they are shown, their weights, and what is not right."""

import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import random_statistics, tiny_images
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_model_data_config
from timm.data.transforms_factory import transforms_imagenet_eval

from usl import InputError
from usl.encoders import hub
from usl.encoders.preprocess import Preprocess, check_agreement
from usl.encoders.registry import Request, build_encoder, describe, new_network, preprocess_for
from usl.encoders.timm import timm_network
from usl.encoders.torchvision import torchvision_network
from usl.models.uslt import UsltNetwork, new_heads

SIZES = [(301, 187), (97, 264), (224, 225), (33, 31), (640, 97)]
PICTURES = [
    Image.fromarray(np.random.RandomState(w).randint(0, 256, (h, w, 3)).astype(np.uint8))
    for w, h in SIZES
]


def shown(preprocess, picture):
    """What the network sees of a picture, (3, side, side)."""
    image = preprocess.cropped(preprocess.resized(picture))
    return preprocess.normalize(torch.from_numpy(image).permute(2, 0, 1)[None])[0]


@pytest.mark.parametrize(
    "name",
    [
        "resnet50.a1_in1k",
        "tf_efficientnet_lite0.in1k",
        "vit_small_patch14_dinov2.lvd142m",
        "vit_base_patch16_siglip_224.webli",
        "convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384",
        "mobilenetv3_large_100.ra_in1k",
        "inception_v3.tv_in1k",
    ],
)
def test_images_are_shown_as_timm_shows_them(name):
    parts = timm_network(name)
    transform = create_transform(**resolve_model_data_config(parts.network), is_training=False)
    for picture in PICTURES:
        assert torch.equal(shown(parts.preprocess, picture), transform(picture))


@pytest.mark.parametrize(
    "name",
    [
        "resnet50",
        "resnet50.IMAGENET1K_V1",
        "vit_b_16.IMAGENET1K_SWAG_E2E_V1",
        "efficientnet_b1.IMAGENET1K_V2",
        "swin_t",
    ],
)
def test_images_are_shown_as_torchvision_shows_them(name):
    with torch.device("meta"):
        parts = torchvision_network(name)
    arch, _, tag = name.partition(".")
    weights = torchvision.models.get_model_weights(arch)
    transform = (weights[tag] if tag else weights.DEFAULT).transforms()
    for picture in PICTURES:
        assert torch.equal(shown(parts.preprocess, picture), transform(picture))


@pytest.mark.parametrize("crop", ["center", "squash", "border"])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_every_crop_is_timms(crop, share):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    transform = transforms_imagenet_eval(
        64, crop_pct=share, crop_mode=crop, interpolation="bicubic", mean=mean, std=std
    )
    ours = Preprocess(64, int(64 / share), crop, "bicubic", mean, std)
    for picture in PICTURES:
        assert torch.equal(shown(ours, picture), transform(picture))


def test_the_side_can_be_chosen_where_the_network_allows_it():
    parts = timm_network("test_resnet", side=96)
    assert (parts.preprocess.side, parts.preprocess.resize) == (96, 101)
    parts = torchvision_network("shufflenet_v2_x0_5", side=112)
    assert (parts.preprocess.side, parts.preprocess.resize) == (112, 128)
    wrong = pytest.raises(InputError, match="`side` is 96, and vit_b_16 sees 224 × 224 pixels")
    with wrong, torch.device("meta"):
        torchvision_network("vit_b_16", side=96)


def test_position_embeddings_fit_another_side(tmp_path):
    """As timm resamples them itself."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_vit", num_classes=0)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = build_encoder("timm/test_vit", request(tmp_path / "w.pth", side=96))
    assert ours.preprocess.side == 96
    theirs.set_input_size((96, 96))
    images = torch.rand(2, 3, 96, 96)
    torch.testing.assert_close(features(ours.network, images), features(theirs, images))


def features(network, images):
    with torch.no_grad():
        return network.eval()(images)


def request(path=None, **options):
    checkpoint = None if path is None else lambda: path
    return Request(images=tiny_images(2), checkpoint=checkpoint, **options)


IMAGES = torch.rand(2, 3, 160, 160, generator=torch.Generator().manual_seed(0))


def written(path, weights, layout):
    """A file with these weights, as people have them."""
    if layout == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(weights, path)
        return path
    content = {
        "flat": weights,
        "parallel": {"state_dict": {f"module.{k}": v for k, v in weights.items()}, "epoch": 3},
        "timm trainer": {"state_dict": weights, "state_dict_ema": {}, "arch": "x"},
    }[layout]
    torch.save(content, path)
    return path


@pytest.mark.parametrize("layout", ["flat", "safetensors", "parallel", "timm trainer"])
@pytest.mark.parametrize("classes", [1000, 0, 7])
def test_weights_come_from_a_file_with_any_classifier_or_none(tmp_path, layout, classes):
    torch.manual_seed(0)
    theirs = random_statistics(timm.create_model("test_resnet", num_classes=classes))
    path = written(tmp_path / "w.pth", theirs.state_dict(), layout)
    ours = build_encoder("timm/test_resnet", request(path))
    theirs.reset_classifier(0)
    assert torch.equal(features(ours.network, IMAGES), features(theirs, IMAGES))


def test_torchvisions_weights(tmp_path):
    theirs = random_statistics(torchvision.models.mobilenet_v3_small())
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = build_encoder("torchvision/mobilenet_v3_small", request(tmp_path / "w.pth"))
    theirs.classifier[3] = torch.nn.Identity()
    assert ours.dim == 1024
    assert torch.equal(features(ours.network, IMAGES), features(theirs, IMAGES))


def test_networks_with_classifiers_for_training_do_without_them(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torchvision.models.googlenet(init_weights=False, transform_input=True)
    torch.save(random_statistics(theirs).state_dict(), tmp_path / "w.pth")
    ours = build_encoder("torchvision/googlenet", request(tmp_path / "w.pth"))
    theirs.fc = torch.nn.Identity()
    assert torch.equal(features(ours.network, IMAGES), features(theirs, IMAGES))
    assert ours.network.train()(IMAGES).shape == (2, 1024)


def test_a_pretrained_or_clustered_encoder_of_a_library_comes_back(tmp_path):
    """What pretrain.py and USL-T write of such networks."""
    torch.manual_seed(0)
    pretext = random_statistics(new_network("timm/test_resnet", 0, 0, cld=False))
    torch.save(pretext.state_dict(), tmp_path / "pretext.pth")
    head = build_encoder("timm/test_resnet", request(tmp_path / "pretext.pth"))
    before = build_encoder("timm/test_resnet", request(tmp_path / "pretext.pth", output="backbone"))
    assert (head.dim, before.dim, head.scale, before.scale) == (128, 96, False, False)
    assert torch.equal(features(head.network, IMAGES), features(pretext, IMAGES))
    expected = torch.nn.functional.normalize(features(pretext.backbone, IMAGES))
    assert torch.equal(features(before.network, IMAGES), expected)

    backbone = timm.create_model("test_resnet", num_classes=0)
    torch.save(random_statistics(backbone).state_dict(), tmp_path / "plain.pth")
    plain = build_encoder("timm/test_resnet", request(tmp_path / "plain.pth"))
    for encoder in (plain, head):
        whole = UsltNetwork(encoder.for_training(), new_heads(encoder.dim, 4, cosine=True))
        torch.save({"model": whole.state_dict(), "ema_model": None}, tmp_path / "uslt.pth")
        again = build_encoder("timm/test_resnet", request(tmp_path / "uslt.pth"))
        assert torch.equal(features(again.network, IMAGES), features(encoder.network, IMAGES))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("timm/test_resnet", {"conv.weight": torch.zeros(1)}, "is of another network; missing: "),
        ("timm/test_vit", {"pos_embed": torch.zeros(3)}, "is of another network"),
        # Converters would resample patches of another size.
        (
            "timm/test_vit",
            timm.create_model("test_vit").state_dict()
            | {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8)},
            "is of another network .ValueError: patches of 8 pixels, not 16",
        ),
        (
            "torchvision/shufflenet_v2_x0_5",
            timm.create_model("test_resnet").state_dict(),
            "is of another network; missing",
        ),
    ],
)
def test_weights_of_another_network(tmp_path, name, weights, message):
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(InputError, match=message):
        build_encoder(name, request(tmp_path / "w.pth"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm/resnet51", {}, "unknown `architecture` 'timm/resnet51'; did you mean timm/resnet5"),
        ("torchvision/resnet5", {}, "did you mean torchvision/resnet5"),
        ("torchvision/resnet50.V9", {}, "has no weights V9; choose one of IMAGENET1K_V1, IMAGENET"),
        ("torchvision/squeezenet1_0", {}, "has no linear last layer; choose another"),
        ("dinov2", {}, "unknown `architecture` 'dinov2'; did you mean timm/.*dinov2"),
        (
            "timm/test_resnet",
            {"transform": "CLD-cifar10"},
            "`transform` is CLD-cifar10, and timm/t",
        ),
        ("timm/test_resnet", {"transform": "x"}, "unknown `transform` 'x'; choose one of CLD-cif"),
        (
            "timm/resnet50.bogus",
            {},
            "unknown `architecture` 'timm/resnet50.bogus'; did you",
        ),
        (
            "timm/test_resnet",
            {"output": "heads"},
            "unknown `output` 'heads'; choose head or",
        ),
        ("CLIP-ViT-B/32", {"output": "heads"}, "unknown `output` 'heads'; choose head or"),
        ("timm/test_resnet", {"side": -1}, "`side` is -1; choose 0, the encoder's own, or more"),
        (
            "timm/seresnet18",
            {},
            "timm has no weights for timm/seresnet18; give a file as `chec",
        ),
    ],
)
def test_what_cannot_be_built(name, options, message):
    with pytest.raises(InputError, match=message) as error:
        build_encoder(name, request(**options))
    assert "\n" not in str(error.value)


def test_the_width_is_checked_where_one_is_expected(tmp_path):
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match="`backbone_dim` is 99, timm/test_resnet has 96"):
        build_encoder("timm/test_resnet", request(tmp_path / "w.pth", backbone_dim=99))


def test_a_transform_that_agrees_is_no_error():
    imagenet = preprocess_for("timm/resnet50.a1_in1k", request(transform="imagenet"))
    assert imagenet.mean == (0.485, 0.456, 0.406)
    check_agreement("", imagenet, "x")
    # The original names ImageNet's beside CLIP, which has its own.
    assert preprocess_for("CLIP-ViT-B/32", request(transform="imagenet")).mean[0] == 0.48145466


def test_clip_crops_nothing_as_openai():
    seen = preprocess_for("CLIP-ViT-B/16", request())
    assert (seen.side, seen.resize, seen.interpolation) == (224, 224, "bicubic")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and empty caches."""
    import huggingface_hub

    def refused(*args, **options):
        raise OSError("no route to host")

    def no_download(*args, **options):
        raise OSError("no route to host\nand more")

    session = types.SimpleNamespace(head=refused)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_download)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_download)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm/test_resnet.r160_in1k",
            r"the weights of timm/test_resnet.r160_in1k are not on this machine: looked for "
            r"model.safetensors of timm/test_resnet.r160_in1k, in the hub's cache .*hub; they "
            r"cannot be downloaded \(OSError: no route to host\); give the file as `checkpoint`",
        ),
        (
            "torchvision/shufflenet_v2_x0_5",
            r"looked for shufflenetv2_x0.5-\w+.pth, in .*torch/checkpoints; they cannot be "
            r"downloaded \(OSError: no route to host\); give the file as `checkpoint`",
        ),
    ],
)
def test_weights_that_are_nowhere(offline, monkeypatch, name, message):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    with pytest.raises(InputError, match=message) as error:
        build_encoder(name, request())
    assert "\n" not in str(error.value)


def test_weights_in_a_cache_need_no_network(offline, monkeypatch):
    theirs = random_statistics(torchvision.models.shufflenet_v2_x0_5())
    url = torchvision.models.get_model_weights("shufflenet_v2_x0_5").DEFAULT.url
    cached = offline / "torch" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    found = build_encoder("torchvision/shufflenet_v2_x0_5", request())
    assert found.source["checkpoint"] == cached.name

    def cache(repository, file):
        assert repository == "timm/test_resnet.r160_in1k"
        return str(offline / file) if file == "pytorch_model.bin" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cache)
    torch.save(timm.create_model("test_resnet").state_dict(), offline / "pytorch_model.bin")
    assert build_encoder("timm/test_resnet", request()).source["checkpoint"] == "pytorch_model.bin"


def test_a_file_is_downloaded_where_there_is_a_network(monkeypatch, tmp_path):
    import huggingface_hub

    def download(repository, file):
        if file == "model.safetensors":
            raise huggingface_hub.errors.EntryNotFoundError("not in the repository")
        return str(tmp_path / file)

    session = types.SimpleNamespace(head=lambda *args, **options: None)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: session)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = hub.from_hub("timm/x", "timm/x", ("model.safetensors", "pytorch_model.bin"))
    assert found == tmp_path / "pytorch_model.bin"


@pytest.mark.slow
def test_a_list_of_encoders():
    assert describe("timm/test_vit.r160_in1k") == ("64", "160")
    assert describe("torchvision/regnet_y_400mf") == ("440", "224")
    assert describe("CLIP-ViT-B/16") == ("512", "224")

    def listed(*pattern):
        command = [sys.executable, "-m", "usl.encoders", *pattern]
        return subprocess.run(command, capture_output=True, text=True)

    done = listed("timm/test_vit*")
    assert "timm/test_vit.r160_in1k           64   160" in done.stdout.splitlines()
    assert done.returncode == 0 and "torchvision" not in done.stdout
    assert listed("nothing").returncode == 2
    # Without its tag, and one without a classifier to take off.
    out = listed("timm/test_resnet", "torchvision/squeezenet1_0").stdout.splitlines()
    assert [line.split() for line in out[1:]] == [
        ["timm/test_resnet.r160_in1k", "96", "160"],
        ["torchvision/squeezenet1_0", "-", "-"],
    ]
