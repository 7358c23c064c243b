"""USL on ImageNet's layout: features, picks, CSVs, released results, lists instead of images."""

import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from commands import IMAGENET, IMAGENET_RANDOM, imagenet_selection
from helpers import (
    ROOT,
    csv_rows,
    kill_script,
    printed,
    printed_alone,
    random_statistics,
    run_script,
)
from oracles.selection import usl as usl_by_hand
from PIL import Image

from usl import InputError
from usl.inference import SHARD_BATCHES

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a small network of timm."""
    path = tmp_path_factory.mktemp("weights") / "resnet.pth"
    torch.manual_seed(0)
    torch.save(random_statistics(timm.create_model("test_resnet")).state_dict(), path)
    return path


def features_by_hand(root, weights, names):
    """What timm's own network and transform make of images, scaled to length 1."""
    network = timm.create_model("test_resnet", num_classes=0).eval()
    network.load_state_dict(torch.load(weights), strict=False)
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config | {"input_size": (3, 32, 32)})
    images = [transform(Image.open(root / "train" / name).convert("RGB")) for name in names]
    with torch.no_grad():
        found = network(torch.stack(images)).numpy()
    return found, found / np.linalg.norm(found, axis=1, keepdims=True)


def eman_reads(path, root):
    """What EMAN's FixMatch makes of a split: rows of ImageFolder by the column Index."""
    from torchvision.datasets import ImageFolder

    samples = ImageFolder(root / "train").samples
    return [samples[i][0] for i in pd.read_csv(path)["Index"].tolist()]


def test_from_images_to_splits(small_folder, weights, tmp_path, script, capsys):
    script(IMAGENET, *imagenet_selection(small_folder, weights, tmp_path, "USL.SEEDS", "[0, 3]"))
    picks = printed(capsys.readouterr().out)
    names = [f"{'abcd'[i // 9]}/{i % 9}.png" for i in range(36)]
    raw, unit = features_by_hand(small_folder, weights, names)
    saved = np.load(tmp_path / "memory_feats_list.npy")
    # Saved as they come; scaled after loading.
    np.testing.assert_allclose(saved, raw, atol=1e-5)
    for seed, end in ((0, ""), (3, "_seed3")):
        expected, clusters, _ = usl_by_hand(
            unit, 4, seed=seed, k=5, rounds=2, weight=1.5, momentum=0.0, form="num", horizon=3
        )
        assert np.load(tmp_path / f"cluster_labels_4_{seed}.npy").tolist() == clusters.tolist()
        assert picks[seed] == expected.tolist()
        assert np.load(tmp_path / f"selected_indices_4_{seed}.npy").tolist() == picks[seed]
        chosen = csv_rows(tmp_path / f"train_11.11p_gen_mine{end}_index.csv")
        rest = csv_rows(tmp_path / f"train_88.89p_gen_mine{end}_index.csv")
        assert list(chosen[0]) == ["Index", "ImageID"]
        assert [int(row["Index"]) for row in chosen] == sorted(picks[seed])
        assert all(names[int(row["Index"])] == row["ImageID"] for row in chosen + rest)
        assert len(chosen) == 4 and len(rest) == 32
        read = eman_reads(tmp_path / f"train_11.11p_gen_mine{end}_index.csv", small_folder)
        assert read == [str(small_folder / "train" / names[i]) for i in sorted(picks[seed])]


@pytest.mark.parametrize("workers", [0, 3])
def test_the_same_picks_for_any_number_of_workers(
    small_folder, weights, tmp_path, script, capsys, workers
):
    both = []
    for folder, count in (("one", 1), ("many", workers)):
        options = ("DATALOADER.WORKERS", count)
        script(IMAGENET, *imagenet_selection(small_folder, weights, tmp_path / folder, *options))
        both.append(printed_alone(capsys.readouterr().out))
    one, many = (np.load(tmp_path / name / "memory_feats_list.npy") for name in ("one", "many"))
    assert both[0] == both[1] and np.array_equal(one, many)


def released(folder, rows, dim=16, seed=0):
    """Features as people have them from the original: float64, of any length."""
    folder.mkdir(parents=True, exist_ok=True)
    features = np.random.RandomState(seed).randn(rows, dim)
    np.save(folder / "memory_feats_list.npy", features)
    return features


def listed(path, names):
    path.write_text("\n".join(names) + "\n")
    return path


def only_names(tmp_path, rows=60):
    """Released features, and a list of names; there are no images and no encoder."""
    names = [f"n{i // 15:04}/{i:04}.JPEG" for i in range(rows)]
    return listed(tmp_path / "names.txt", names), names


def without_images(names, run, *options):
    return (
        "--cfg", "configs/ImageNet_usl_clip_0.2.yaml", "--opts", "DATASET.IMAGE_LIST", names,
        "DATASET.ROOT_DIR", run / "nowhere", "RUN_DIR", run, "RUN_NAME", "mine",
        "USL.NUM_SELECTED_SAMPLES", 6, "USL.KNN_K", 5, "USL.REG.HORIZON_NUM", 3, *options,
    )  # fmt: skip


def test_released_features_need_neither_images_nor_an_encoder(tmp_path, script, capsys):
    list_path, names = only_names(tmp_path)
    raw = released(tmp_path / "run", 60)
    script(IMAGENET, *without_images(list_path, tmp_path / "run"))
    picks = printed_alone(capsys.readouterr().out)
    log = tmp_path / "run" / "run.log"
    assert "using memory_feats_list.npy, which this run did not make" in log.read_text()
    # CLIP's features are scaled after loading.
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected, _, _ = usl_by_hand(
        unit, 6, seed=0, k=5, rounds=2, weight=0.05, momentum=0.0, alpha=1.0, form="num",
        horizon=3, exclude_own=True,
    )  # fmt: skip
    assert picks == expected.tolist()
    rows = csv_rows(tmp_path / "run" / "train_10p_gen_mine_index.csv")
    assert [row["ImageID"] for row in rows] == [names[i] for i in sorted(picks)]
    # Again: what was taken is taken again, also once the images are there.
    for name in names:
        (tmp_path / "run" / "nowhere" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / "nowhere" / "train" / name).touch()
    script(IMAGENET, *without_images(list_path, tmp_path / "run"))
    assert printed_alone(capsys.readouterr().out) == picks
    assert "reused memory_feats_list.npy" in log.read_text()


def test_names_without_features_need_images(tmp_path, script):
    list_path, _ = only_names(tmp_path)
    options = ("MODEL.ARCH", "pixels", "DATASET.TRANSFORM_NAME", "")
    with pytest.raises(InputError, match="no images in .*nowhere/train, only their names .DATASET"):
        script(IMAGENET, *without_images(list_path, tmp_path / "run", *options))


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (59, (), r"memory_feats_list.npy has shape \(59, 16\), needed is \(60, any\); remove it"),
        (60, ("DATASET.UNREADABLE", "hide"), "DATASET.UNREADABLE is 'hide'; choose stop or skip"),
        (60, ("USL.NUM_SELECTED_SAMPLES", 61), "a budget of 61 picks from 60 images"),
        (60, ("RECOMPUTE_ALL", True), "the weights of CLIP-ViT-B/16 are not on this machine: .*; "),
    ],
)
def test_bad_input_with_released_features(tmp_path, script, monkeypatch, rows, options, message):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    list_path, _ = only_names(tmp_path)
    released(tmp_path / "run", rows)
    with pytest.raises(InputError, match=message):
        script(IMAGENET, *without_images(list_path, tmp_path / "run", *options))


def test_another_encoder_does_not_take_the_features_of_the_first(tmp_path, script, capsys):
    """What was taken for CLIP's stands for CLIP's only."""
    list_path, _ = only_names(tmp_path)
    released(tmp_path / "run", 60)
    script(IMAGENET, *without_images(list_path, tmp_path / "run"))
    options = ("MODEL.ARCH", "pixels", "DATASET.TRANSFORM_NAME", "")
    with pytest.raises(InputError, match="only their names"):
        script(IMAGENET, *without_images(list_path, tmp_path / "run", *options))


def test_broken_images_stop_or_are_skipped(small_folder, weights, tmp_path, script, capsys):
    root = shutil.copytree(small_folder, tmp_path / "data")
    (root / "train" / "b" / "2.png").write_bytes(b"not an image")
    (root / "train" / "d" / "8.png").write_bytes(b"")
    argv = imagenet_selection(root, weights, tmp_path / "run", "USL.NUM_SELECTED_SAMPLES", 34)
    with pytest.raises(InputError, match="b/2.png: it is in no known format"):
        script(IMAGENET, *argv)
    script(IMAGENET, *argv, "DATASET.UNREADABLE", "skip")
    picks = printed_alone(capsys.readouterr().out)
    # All that can be read are picked, by their own numbers.
    assert sorted(picks) == [i for i in range(36) if i not in (11, 35)]
    rows = csv_rows(tmp_path / "run" / "unreadable.csv")
    assert [(row["Index"], row["ImageID"]) for row in rows] == [
        ("11", "b/2.png"),
        ("35", "d/8.png"),
    ]
    assert "it is in no known format" in rows[0]["Reason"]
    log = (tmp_path / "run" / "run.log").read_text()
    assert "2 of 36 images cannot be read and are never picked" in log
    assert "unreadable: b/2.png" in log and "unreadable: d/8.png" in log
    features = np.load(tmp_path / "run" / "memory_feats_list.npy")
    assert np.flatnonzero(np.isnan(features).any(axis=1)).tolist() == [11, 35]
    assert np.load(tmp_path / "run" / "rows.npy").tolist() == sorted(picks)
    rest = csv_rows(tmp_path / "run" / "train_5.56p_gen_mine_index.csv")
    # Nobody could train on the others.
    assert rest == []
    # The same, from what is saved.
    script(IMAGENET, *argv, "DATASET.UNREADABLE", "skip", "RECOMPUTE_ALL", False)
    assert printed_alone(capsys.readouterr().out) == picks
    with pytest.raises(InputError, match="a budget of 35 picks from 34 images; choose 1 to 34"):
        script(IMAGENET, *argv, "DATASET.UNREADABLE", "skip", "USL.NUM_SELECTED_SAMPLES", 35)
    # Once the files are mended nothing says that they were not.
    for name in ("b/2.png", "d/8.png"):
        shutil.copy(small_folder / "train" / name, root / "train" / name)
    script(IMAGENET, *argv, "DATASET.UNREADABLE", "skip")
    assert not {"unreadable.csv", "rows.npy"} & {p.name for p in (tmp_path / "run").iterdir()}


def test_what_an_encoder_refuses_is_named_with_its_reason(small_folder, tmp_path, script):
    root = shutil.copytree(small_folder, tmp_path / "data")
    Image.new("L", (1, 150000)).save(root / "train" / "a" / "thread.png")
    argv = imagenet_selection(root, "", tmp_path / "run", "MODEL.ARCH", "pixels")
    script(IMAGENET, *argv, "DATASET.UNREADABLE", "skip", "DATASET.IMAGE_SIZE", 224)
    (row,) = csv_rows(tmp_path / "run" / "unreadable.csv")
    assert row["ImageID"] == "a/thread.png"
    assert "is too long for its width, 1 × 150000 pixels; crop it" in row["Reason"]


def test_a_subset_of_classes(small_folder, weights, tmp_path, script, capsys):
    subset = listed(tmp_path / "classes.txt", ["d fourth", "b second kind", ""])
    argv = imagenet_selection(
        small_folder, weights, tmp_path / "run", "DATASET.SUBSET", subset, "DATASET.NAME",
        "imagenet100",
    )  # fmt: skip
    script(IMAGENET, *argv)
    rows = csv_rows(tmp_path / "run" / "train_22.22p_gen_mine_index.csv")
    assert len(rows) == 4 and {row["ImageID"][0] for row in rows} <= {"b", "d"}
    assert all(row["ImageID"] == f"{'bd'[i // 9]}/{i % 9}.png" for row in rows
               for i in [int(row["Index"])])  # fmt: skip
    listed(subset, ["b", "x"])
    with pytest.raises(InputError, match="class x of DATASET.SUBSET has no folder in .*train"):
        script(IMAGENET, *argv)


def test_random_picks_are_the_published_draw(tmp_path, script, capsys):
    list_path, names = only_names(tmp_path)
    argv = (
        "--cfg", "configs/ImageNet_random_0.2.yaml", "--opts", "DATASET.IMAGE_LIST", list_path,
        "DATASET.ROOT_DIR", tmp_path, "RUN_DIR", tmp_path / "run", "RANDOM.SEEDS", "[0, 2]",
        "RANDOM.NUM_SELECTED_SAMPLES", 6,
    )  # fmt: skip
    script(IMAGENET_RANDOM, *argv)
    picks = printed(capsys.readouterr().out)
    for seed, end in ((0, ""), (2, "_seed2")):
        np.random.seed(seed)
        expected = np.random.choice(np.arange(60), size=6, replace=False)
        assert picks[seed] == expected.tolist()
        rows = csv_rows(tmp_path / "run" / f"train_10p_gen_random{end}_index.csv")
        assert [row["ImageID"] for row in rows] == [names[i] for i in sorted(expected)]
        assert len(csv_rows(tmp_path / "run" / f"train_90p_gen_random{end}_index.csv")) == 54


@pytest.mark.slow
def test_decoding_goes_on_where_it_was_killed(small_folder, weights, tmp_path):
    argv = imagenet_selection(small_folder, weights, tmp_path / "run", "DATALOADER.BATCH_SIZE", 1)
    shards = tmp_path / "run" / "memory_feats_list.partial"
    kill_script(IMAGENET, *argv, when=lambda: len(list(shards.glob("0*.json"))) >= 2)
    done = len(list(shards.glob("0*.json")))
    assert 2 <= done < 36 / SHARD_BATCHES
    again = run_script(IMAGENET, *argv)
    assert again.returncode == 0, again.stderr
    assert f"{done} of 5 shards are there already" in again.stderr
    whole = imagenet_selection(small_folder, weights, tmp_path / "b", "DATALOADER.BATCH_SIZE", 1)
    assert run_script(IMAGENET, *whole).stdout.split("report:")[0] in again.stdout
    one, two = (np.load(tmp_path / name / "memory_feats_list.npy") for name in ("run", "b"))
    assert np.array_equal(one, two)


@pytest.mark.slow
def test_the_originals_commands_run_as_printed(tmp_path):
    """In a copy of the repository: a folder in ImageNet's layout, and features of both encoders."""
    for folder in ("selective_labeling", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("saved"))
    for i in range(3000):
        path = tmp_path / "data" / "ImageNet" / "train" / f"n{i % 10:08}" / f"{i:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 16), (i % 256, i // 256, 90)).save(path)
    stage = tmp_path / "selective_labeling"
    for run, command in (
        ("imagenet_usl_moco_0.2", "usl-imagenet.py"),
        ("imagenet_usl_clip_0.2", "usl-imagenet.py --cfg configs/ImageNet_usl_clip_0.2.yaml"),
    ):
        released(stage / "saved" / run, 3000)
        script = [sys.executable, *command.split()]
        done = subprocess.run(script, cwd=stage, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        picks = np.load(stage / "saved" / run / "selected_indices_2911_0.npy")
        assert len(set(picks.tolist())) == 2911
        rows = csv_rows(stage / "saved" / run / f"train_0.2p_gen_{run}_index.csv")
        rest = csv_rows(stage / "saved" / run / f"train_99.8p_gen_{run}_index.csv")
        assert len(rows) == 2911 and len(rest) == 89
        assert rows[0]["ImageID"].startswith("n00000000/")
        assert (stage / "saved" / run / "report.html").read_text().count("n00000000/") > 30


@pytest.mark.usefixtures("no_pictures")
def test_a_report_shows_what_can_be_shown(small_folder, tmp_path, script, monkeypatch):
    """A pick whose file has gone by then ends no run."""
    from usl.report.selection import write_selection_report

    monkeypatch.setattr("usl.stages.report.write_selection_report", write_selection_report)
    root = shutil.copytree(small_folder, tmp_path / "data")
    (root / "train" / "a" / "0.png").write_bytes(b"")
    argv = (
        "--cfg", "configs/ImageNet_random_0.2.yaml", "--opts", "DATASET.NAME", "folder",
        "DATASET.ROOT_DIR", root, "RUN_DIR", tmp_path / "run", "RANDOM.NUM_SELECTED_SAMPLES", 36,
    )  # fmt: skip
    script(IMAGENET_RANDOM, *argv)
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("<img src=") == 35 and "a/0.png" in report
    assert "no picture in the report: cannot read" in (tmp_path / "run" / "run.log").read_text()
