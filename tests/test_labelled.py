"""Lists of labelled images: files of every kind, draws, published lists, and what is no list."""

import csv
import json
import logging
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from usl.data.labelled import draw_labelled, read_labelled
from usl.selection.baselines import stratified_picks
from usl.selection.random import random_picks
from usl.steps.evaluation import _selector_of, compare_counts, read_labels, say_remarks

from usl import InputError
from usl.config import finetune_defaults, parse
from usl.data.datasets import ImageDataset, open_dataset

SCRIPT = str(ROOT / "semisup-simclrv2-cld" / "fine_tune.py")
RELEASED = ROOT / "selective_labeling" / "released"
SIZES = {
    "cifar10_random_seed1": 40, "cifar10_random_seed2": 40, "cifar10_random_seed5": 40,
    "cifar10_usl_seed1": 40, "cifar10_usl_seed2": 40, "cifar10_usl_seed5": 40,
    "cifar10_usl-t": 40, "cifar100_random": 400, "cifar100_usl": 400, "cifar100_usl-t": 400,
}  # fmt: skip


def pets(labels=True):
    answers = np.array([0, 1, 2, 1, 0, 2, 1, 0, 2, 0])
    images = np.zeros((10, 8, 8, 3), np.uint8)
    return ImageDataset("pets", "train", images, answers if labels else None, ("cat", "dog", "2nd"))


def read(tmp_path, content, *, name="list.csv", images=None):
    path = tmp_path / name
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    else:
        np.save(path, content)
    return read_labelled(path, images or pets())


GOOD = {
    "npy": (np.array([7, 1, 2]), [7, 1, 2], [0, 1, 2]),
    "npy of small unsigned": (np.array([7, 1, 2], np.uint8), [7, 1, 2], [0, 1, 2]),
    "Index": ("Index\n7\n1\n2\n", [7, 1, 2], [0, 1, 2]),
    "Index among others": ("Name,Index\nx,7\ny,1\nz,2\n", [7, 1, 2], [0, 1, 2]),
    "numbers": ("Index,Label\n7,2\n1,0\n2,1\n", [7, 1, 2], [2, 0, 1]),
    "names": ("Index,Label\n7,dog\n1,cat\n2,2nd\n", [7, 1, 2], [1, 0, 2]),
    "both": ("Index,Label\n7,dog\n1,0\n", [7, 1], [1, 0]),
    "other order, spaces, blank lines": ("Label , Index\ndog, 7\n\n cat,1\n\n", [7, 1], [1, 0]),
    "as spreadsheets write it": (b'\xef\xbb\xbfIndex,Label\r\n"7","dog"\r\n', [7], [1]),
    "cells without a column": ("Index,Label\n7,dog,,\n1,cat\n", [7, 1], [1, 0]),
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_lists_of_every_kind(tmp_path, kind):
    content, indices, labels = GOOD[kind]
    found = read(tmp_path, content, name="list.npy" if kind.startswith("npy") else "list.csv")
    assert found.indices.tolist() == indices and found.labels.tolist() == labels
    assert found.indices.dtype == found.labels.dtype == torch.int64 and len(found) == len(indices)


def test_answers_need_no_labels_of_the_data_set(tmp_path):
    found = read(tmp_path, "Index,Label\n7,dog\n1,cat\n", images=pets(labels=False))
    assert found.labels.tolist() == [1, 0]


BAD = {
    "out of range": ("Index\n3\n10\n", "list.csv has the index 10, and pets has the images 0 to 9"),
    "below 0": ("Index\n-1\n", "has the index -1, and pets"),
    "huge": ("Index\n99999999999999999999\n", "has the index 99999999999999999999, and pets"),
    "twice": ("Index\n3\n4\n3\n4\n3\n", "has the index 3, 4 more than once; keep each once"),
    "no number": ("Index\n3\nx7\n", "list.csv, line 3: the index 'x7' is no whole number"),
    "a half": ("Index\n3.5\n", "the index '3.5' is no whole number"),
    "no index": ("Index,Label\n3,dog\n,cat\n", "line 3: the index '' is no whole number"),
    "no column": ("Idx,Label\n3,dog\n", "has no column Index, only Idx, Label; add it"),
    "semicolons": ("Index;Label\n3;dog\n", "has no column Index, only Index;Label; add it"),
    "nothing": ("", "has no column Index; add it"),
    "no rows": ("Index\n", "lists no image; give at least one index"),
    "a wrong number": ("Index,Label\n3,dog\n4,3\n", "line 3: the label '3' is no class; give 0"),
    "a wrong name": ("Index,Label\n3,Dog\n", "'Dog' is no class; give 0 to 2 or a name: cat, dog"),
    "an empty answer": ("Index,Label\n3,\n", "line 2: the label '' is no class"),
    "an answer left out": ("Index,Label\n3\n", "line 2: the label '' is no class"),
    "bytes": (b"Index\n\xff\xfe\x81\n", "cannot read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_csv(tmp_path, kind):
    content, message = BAD[kind]
    with pytest.raises(InputError) as error:
        read(tmp_path, content)
    assert message in str(error.value) and "list.csv" in str(error.value)
    assert "\n" not in str(error.value)


BAD_ARRAYS = {
    "out of range": (np.array([3, 10]), "has the index 10, and pets has the images 0 to 9"),
    "twice": (np.array([3, 3]), "has the index 3 more than once"),
    "empty": (np.array([], np.int64), "lists no image"),
    "floats": (np.array([1.0, 2.0]), "holds float64 values; give a list of indices"),
    "a table": (np.array([[1, 2]]), "has shape (1, 2), needed is (any)"),
    "objects": (np.array([{}], object), "holds pickled objects"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(tmp_path, kind):
    content, message = BAD_ARRAYS[kind]
    with pytest.raises(InputError) as error:
        read(tmp_path, content, name="list.npy")
    assert message in str(error.value) and "list.npy" in str(error.value)


def test_other_things_that_are_no_list(tmp_path):
    with pytest.raises(InputError, match="list.txt is neither .npy nor .csv; give a list of one"):
        read(tmp_path, "3\n", name="list.txt")
    with pytest.raises(InputError, match="has no labels and pets has none; add a column Label"):
        read(tmp_path, "Index\n3\n", images=pets(labels=False))
    many = "Index\n" + "".join(f"{i}\n" for i in range(10, 40))
    with pytest.raises(InputError, match="has the index 10, 11, .*, 21 and 18 more, and pets"):
        read(tmp_path, many)


def test_a_class_without_a_label_is_said(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("usl"), "propagate", True)
    found = read(tmp_path, "Index,Label\n7,dog\n1,dog\n")
    assert found.remarks == ("no image is labelled cat, 2nd",)
    say_remarks(found)
    assert caplog.records[-1].levelname == "WARNING"
    assert f"{tmp_path / 'list.csv'}: no image is labelled cat, 2nd" in caplog.messages
    assert read(tmp_path, "Index\n7\n1\n2\n").remarks == ()


def test_fingerprints_are_of_indices_and_labels(tmp_path):
    contents = (
        "Index\n7\n1\n",
        "Index,Label\n7,0\n1,1\n",
        "Index,Label\n7,1\n1,1\n",
        "Index\n1\n7\n",
    )
    prints = [read(tmp_path, content).fingerprint() for content in contents]
    assert prints[0] == prints[1] and len(set(prints)) == 3


def test_draws_by_class():
    data = open_dataset("digits", "")
    found = draw_labelled(data, 40, seed=3)
    expected = stratified_picks(torch.from_numpy(data.labels), 40, seed=3)
    assert found.indices.tolist() == expected.tolist() and found.counts(10) == [4] * 10
    assert found.labels.tolist() == data.labels[expected].tolist() and found.name == "slice3"
    with pytest.raises(InputError, match="a budget of 1438 picks from 1437 images"):
        draw_labelled(data, 1438, seed=0)
    with pytest.raises(InputError, match="slice0 draws by class, and pets has no labels"):
        draw_labelled(pets(labels=False), 2, seed=0)


def listed(name):
    with (RELEASED / f"{name}.csv").open() as file:
        return [int(row["Index"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", SIZES)
def test_the_published_lists(name):
    indices = listed(name)
    assert len(indices) == len(set(indices)) == SIZES[name]
    assert min(indices) >= 0 and max(indices) < 50000
    counts = json.loads((RELEASED / "class_counts.json").read_text())[name]
    assert sum(counts) == SIZES[name] and len(counts) == (
        10 if name.startswith("cifar10_") else 100
    )


def test_there_are_ten_of_them():
    assert sorted(path.stem for path in RELEASED.glob("*.csv")) == sorted(SIZES)
    assert set(json.loads((RELEASED / "class_counts.json").read_text())) == set(SIZES)


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("cifar10_random_seed1", 1),
        ("cifar10_random_seed2", 2),
        ("cifar10_random_seed5", 5),
        ("cifar100_random", 5),
    ],
)
def test_the_published_random_lists_are_our_draws(name, seed):
    assert listed(name) == random_picks(50000, SIZES[name], seed=seed).tolist()


@pytest.mark.parametrize(
    ("dataset", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")]
)
def test_class_counts_on_real_cifar(dataset, folder):
    if not (ROOT / "data" / folder).is_dir():
        pytest.skip(f"{dataset} is not in data/")
    images = open_dataset(dataset, ROOT / "data")
    published = json.loads((RELEASED / "class_counts.json").read_text())
    for name in (name for name in SIZES if name.startswith(f"{dataset}_")):
        found = read_labels(str(RELEASED / f"{name}.csv"), "KEY", images, seed=0, budget=0)
        assert found.counts(len(images.classes)) == published[name], name


def test_other_class_counts_than_the_published_ones_are_remarked():
    path = RELEASED / "cifar10_usl_seed1.csv"
    counts = json.loads((RELEASED / "class_counts.json").read_text())["cifar10_usl_seed1"]
    labels = np.zeros(50000, np.int64)
    labels[listed("cifar10_usl_seed1")] = np.repeat(np.arange(10), counts)
    images = np.zeros((50000, 1, 1, 1), np.uint8)
    data = ImageDataset("cifar10", "train", images, labels, tuple("abcdefghij"))
    assert read_labels(str(path), "KEY", data, seed=0, budget=0).remarks == ()
    labels[3301] = 9
    (remark,) = read_labels(str(path), "KEY", data, seed=0, budget=0).remarks
    assert remark.startswith("its class counts are not those published with it")
    # A list of one's own is compared with nothing.
    own = read_labelled(path, data)
    assert compare_counts(own, RELEASED / "mine.csv", 10) is own


def path_of(*argv):
    cfg = parse(finetune_defaults(), list(argv), script=SCRIPT)
    return cfg.FINETUNE.LABELED_INDICES_PATH


def test_published_lists_and_draws_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = "FINETUNE.LABELED_INDICES_PATH"
    expected = str(RELEASED / "cifar10_usl-t.csv")
    assert path_of("--opts", key, "released/cifar10_usl-t.csv") == expected
    config = tmp_path / "a.yaml"
    for name, found in (
        ("released/cifar10_usl-t.csv", expected),
        ("slice3", "slice3"),
        ("slice{seed}", "slice{seed}"),
        ("picks/a_{seed}.npy", str(ROOT / "semisup-simclrv2-cld" / "picks" / "a_{seed}.npy")),
    ):
        config.write_text(yaml.safe_dump({"FINETUNE": {"LABELED_INDICES_PATH": name}}))
        assert path_of("--cfg", str(config)) == found
    assert path_of("--opts", key, "slice12") == "slice12"
    # Other names that begin so are files.
    assert path_of("--opts", key, "slice") == str(tmp_path / "slice")
    assert path_of("--opts", key, "slice1.csv") == str(tmp_path / "slice1.csv")
    config.write_text("SAVE_DIR: slice1\nRUN_NAME: r")
    cfg = parse(finetune_defaults(), ["--cfg", str(config)], script=SCRIPT)
    assert str(ROOT / "semisup-simclrv2-cld" / "slice1" / "r") == cfg.RUN_DIR


def labels_of(name, seed=0, budget=4):
    return read_labels(str(name), "KEY", pets(), seed=seed, budget=budget)


def test_seeds_in_names(tmp_path):
    for seed in (1, 2):
        np.save(tmp_path / f"picks_{seed}.npy", np.arange(seed, seed + 3))
    for seed in (1, 2):
        found = labels_of(tmp_path / "picks_{seed}.npy", seed)
        assert found.indices.tolist() == [seed, seed + 1, seed + 2]
        assert found.name == str(tmp_path / f"picks_{seed}.npy")
    first, again, other = (labels_of(f"slice{n}", 7) for n in ("1", "1", "{seed}"))
    assert first.indices.tolist() == again.indices.tolist() and other.name == "slice7"
    assert Counter(first.labels.tolist()).most_common()[-1][1] == 1


def test_lists_in_the_repository_are_named_from_its_root():
    images = np.zeros((50000, 1, 1, 1), np.uint8)
    data = ImageDataset("cifar10", "train", images, np.zeros(50000, np.int64), tuple("abcdefghij"))
    found = read_labels(str(RELEASED / "cifar10_usl-t.csv"), "KEY", data, seed=0, budget=0)
    assert found.name == "selective_labeling/released/cifar10_usl-t.csv"


MISSING = {
    "selective_labeling/saved/cifar10_usl-t/selected_indices_40_0.npy": [
        "or run selective_labeling/usl-t-cifar.py --cfg configs/cifar10_usl-t.yaml, which makes it",
        "or use the published list, released/cifar10_usl-t.csv",
    ],
    "selective_labeling/saved/cifar10_usl/selected_indices_40_1.npy": [
        "selective_labeling/usl-cifar.py --cfg configs/cifar10_usl.yaml",
        "released/cifar10_usl_seed1.csv",
    ],
    "selective_labeling/saved/cifar10_random/selected_indices_40_5.npy": [
        "selective_labeling/random-cifar.py --cfg configs/cifar10_random.yaml",
        "released/cifar10_random_seed5.csv",
    ],
    "selective_labeling/saved/cifar100_usl-t/selected_indices_400_0.npy": [
        "selective_labeling/usl-t-cifar.py --cfg configs/cifar100_usl-t.yaml",
        "released/cifar100_usl-t.csv",
    ],
    "selective_labeling/released/cifar10_uls.csv": [
        "or choose one of those there: cifar100_random, cifar100_usl, cifar100_usl-t, cifar10_ran"
    ],
    "somewhere/x.csv": [],
}


@pytest.mark.parametrize("name", MISSING)
def test_a_list_that_is_not_there(name):
    with pytest.raises(InputError) as error:
        labels_of(ROOT / name)
    text = str(error.value)
    start = f"there is no list of labelled images (KEY); put {name.rpartition('/')[2]} in one of"
    assert text.startswith(start) and str(ROOT / name) in text and "\n" not in text
    assert all(advice in text for advice in MISSING[name])
    assert ("or " in text.partition("tried: ")[2]) == bool(MISSING[name])


def test_a_folder_and_nothing_are_no_lists(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(InputError, match="there is no list of labelled images"):
        labels_of(tmp_path / "x.csv")
    with pytest.raises(InputError, match="KEY is empty; give a .npy or .csv of labelled images"):
        labels_of("")


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("selective_labeling/saved/cifar10_usl-t/selected_indices_40_0.npy", "usl-t"),
        ("selective_labeling/saved/cifar10_usl/selected_indices_40_3.npy", "usl"),
        ("selective_labeling/released/cifar10_random_seed5.csv", "random"),
        ("slice3", "stratified"),
        ("/home/me/my_answers.csv", "my_answers"),
    ],
)
def test_which_selector_a_list_comes_from(name, selector):
    assert _selector_of(name, "cifar10") == selector
