"""Which lists of labelled images are found, and what is said of them."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import yaml
from commands import FINETUNE
from helpers import RELEASED, ROOT, pets, read_list, settings

from usl import InputError
from usl.data.datasets import ImageDataset, open_dataset
from usl.lists.read import read_labelled
from usl.selectors.random import random_picks
from usl.stages.evaluation import _selector_of
from usl.stages.finetune import finetune_defaults
from usl.stages.labels import compare_counts, read_labels, say_remarks

SIZES = {
    "cifar10_random_seed1": 40, "cifar10_random_seed2": 40, "cifar10_random_seed5": 40,
    "cifar10_usl_seed1": 40, "cifar10_usl_seed2": 40, "cifar10_usl_seed5": 40,
    "cifar10_usl-t": 40, "cifar100_random": 400, "cifar100_usl": 400, "cifar100_usl-t": 400,
}  # fmt: skip


def test_a_class_without_a_label_is_said(tmp_path, caplog):
    found = read_list(tmp_path, "Index,Label\n7,dog\n1,dog\n")
    assert found.remarks == ("no image is labelled cat, 2nd",)
    say_remarks(found)
    assert caplog.records[-1].levelname == "WARNING"
    assert f"{tmp_path / 'list.csv'}: no image is labelled cat, 2nd" in caplog.messages
    assert read_list(tmp_path, "Index\n7\n1\n2\n").remarks == ()


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
        found = labels_of(RELEASED / f"{name}.csv", images=images)
        assert found.counts(len(images.classes)) == published[name], name


def test_other_class_counts_than_the_published_ones_are_remarked():
    path = RELEASED / "cifar10_usl_seed1.csv"
    counts = json.loads((RELEASED / "class_counts.json").read_text())["cifar10_usl_seed1"]
    labels = np.zeros(50000, np.int64)
    labels[listed("cifar10_usl_seed1")] = np.repeat(np.arange(10), counts)
    images = np.zeros((50000, 1, 1, 1), np.uint8)
    data = ImageDataset("cifar10", "train", images, labels, tuple("abcdefghij"))
    assert labels_of(path, images=data).remarks == ()
    labels[3301] = 9
    (remark,) = labels_of(path, images=data).remarks
    assert remark.startswith("its class counts are not those published with it")
    # A list of one's own is compared with nothing.
    own = read_labelled(path, data)
    assert compare_counts(own, RELEASED / "mine.csv", 10) is own


def path_of(*argv):
    return settings(FINETUNE, *argv).FINETUNE.LABELED_INDICES_PATH


def test_published_lists_and_draws_by_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = str(RELEASED / "cifar10_usl-t.csv")
    assert path_of("--opts", KEY, "released/cifar10_usl-t.csv") == expected
    config = tmp_path / "a.yaml"
    for name, found in (
        ("released/cifar10_usl-t.csv", expected),
        ("slice3", "slice3"),
        ("slice{seed}", "slice{seed}"),
        ("picks/a_{seed}.npy", str(ROOT / "semisup-simclrv2-cld" / "picks" / "a_{seed}.npy")),
    ):
        config.write_text(yaml.safe_dump({"FINETUNE": {"LABELED_INDICES_PATH": name}}))
        assert path_of("--cfg", str(config)) == found
    assert path_of("--opts", KEY, "slice12") == "slice12"
    # Other names that begin so are files.
    assert path_of("--opts", KEY, "slice") == str(tmp_path / "slice")
    assert path_of("--opts", KEY, "slice1.csv") == str(tmp_path / "slice1.csv")
    config.write_text("SAVE_DIR: slice1\nRUN_NAME: r")
    cfg = settings(FINETUNE, "--cfg", config)
    assert str(ROOT / "semisup-simclrv2-cld" / "slice1" / "r") == cfg.RUN_DIR


KEY = "FINETUNE.LABELED_INDICES_PATH"


def labels_of(name, seed=0, budget=4, images=None):
    cfg = finetune_defaults()
    cfg.FINETUNE.LABELED_INDICES_PATH, cfg.FINETUNE.NUM_LABELED = str(name), budget
    return read_labels(cfg, "FINETUNE", images or pets(), seed=seed)


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
    found = labels_of(RELEASED / "cifar10_usl-t.csv", images=data)
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
def test_a_list_that_is_not_there(name, tmp_path):
    # Not in the repository itself, where somebody may have made it.
    (tmp_path / "selective_labeling").mkdir()
    (tmp_path / "selective_labeling" / "released").symlink_to(RELEASED)
    with pytest.raises(InputError) as error:
        labels_of(tmp_path / name)
    text = str(error.value)
    file = name.rpartition("/")[2]
    start = f"there is no list of labelled images ({KEY}); put {file} in one of"
    assert text.startswith(start) and str(tmp_path / name) in text and "\n" not in text
    assert all(advice in text for advice in MISSING[name])
    assert ("or " in text.partition("tried: ")[2]) == bool(MISSING[name])


def test_a_folder_and_nothing_are_no_lists(tmp_path):
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(InputError, match="x.csv is a folder, and a file is needed; put x.csv in"):
        labels_of(tmp_path / "x.csv")
    with pytest.raises(
        InputError,
        match=f"{KEY} is empty; give a .npy or .csv of labelled images",
    ):
        labels_of("")


@pytest.mark.parametrize(
    ("name", "selector"),
    [
        ("selective_labeling/saved/cifar10_usl-t/selected_indices_40_0.npy", "usl-t"),
        ("selective_labeling/saved/cifar10_usl/selected_indices_40_3.npy", "usl"),
        ("selective_labeling/released/cifar10_random_seed5.csv", "random"),
        ("slice3", "stratified"),
        ("/home/me/my_answers.csv", "my_answers"),
        ("a/train_0.3p_gen_cifar10_usl-t_0.3_index.csv", "usl-t_0.3"),
        ("train_12.5p_gen_random_seed3_index.csv", "random"),
    ],
)
def test_which_selector_a_list_comes_from(name, selector):
    assert _selector_of(name, "cifar10") == selector
