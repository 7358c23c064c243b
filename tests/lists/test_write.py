"""The CSVs of labelled and unlabelled images."""

import io

import numpy as np
import pandas as pd
import pytest

from usl.data.datasets import ImageDataset
from usl.lists.write import index_csvs, percent


@pytest.mark.parametrize(
    ("dataset", "budget", "images", "name"),
    [
        ("imagenet", 2911, 1_281_167, "0.2"),
        ("imagenet", 12820, 1_281_167, "1"),
        ("imagenet100", 400, 126_689, "0.3"),
        ("imagenet", 400, 1_281_167, "0.03122"),
        ("imagenet", 1, 1_281_167, "0.00007805"),
        ("cifar10", 40, 50_000, "0.08"),
    ],
)
def test_budgets_in_percent(dataset, budget, images, name):
    assert percent(dataset, budget, images) == name


def images(count):
    return ImageDataset("made", "train", np.zeros((count, 4, 4, 1), np.uint8), None, ())


def read(text):
    return pd.read_csv(io.StringIO(text))


def test_index_csvs_by_hand():
    found = index_csvs(images(8), np.array([5, 2]), "run")
    assert list(found) == ["train_25p_gen_run_index.csv", "train_75p_gen_run_index.csv"]
    picked, rest = (read(text) for text in found.values())
    assert picked.values.tolist() == [[2, 2], [5, 5]]
    assert rest["Index"].tolist() == [0, 1, 3, 4, 6, 7] and list(rest) == ["Index", "ImageID"]
    unreadable = index_csvs(images(8), np.array([5, 2]), "run", unreadable=np.array([0, 7]))
    assert list(unreadable) == list(found)
    picked, rest = (read(text) for text in unreadable.values())
    assert picked["Index"].tolist() == [2, 5] and rest["Index"].tolist() == [1, 3, 4, 6]
    labels = np.array([-1, 3, 3, -1, -1, 0, -1, -1])
    picked, rest = map(
        read, index_csvs(images(8), np.array([5, 2]), "r", pseudo_labels=labels).values()
    )
    assert picked["Index"].tolist() == [1, 2, 5] and picked["Pseudolabel"].tolist() == [3, 3, 0]
    assert set(rest["Pseudolabel"]) == {-1} and len(rest) == 5


def test_half_of_the_images_has_two_files():
    found = index_csvs(images(8), np.arange(4), "run")
    assert list(found) == ["train_50p_gen_run_index.csv", "train_50p_gen_run_rest_index.csv"]
    assert read(found["train_50p_gen_run_index.csv"])["Index"].tolist() == [0, 1, 2, 3]
