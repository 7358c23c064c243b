"""The CSVs of labelled and unlabelled images; batch norm shared by processes."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch import nn
from usl.data.splits import index_csvs, percent

from usl import distributed
from usl.data.datasets import ImageDataset


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shared_batch_norm_is_batch_norm(tmp_path, dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4, 4).to(dtype)
    plain, shared = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    shared.__class__ = distributed._SharedBatchNorm
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        out = shared(x)
    finally:
        dist.destroy_process_group()
    expected = plain(x.float())
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), expected, atol=0.02 if dtype != torch.float32 else 1e-5, rtol=1e-2
    )
    for name in ("running_mean", "running_var"):
        assert getattr(shared, name).dtype == torch.float32
        torch.testing.assert_close(getattr(shared, name), getattr(plain, name))
