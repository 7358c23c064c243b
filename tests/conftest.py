import logging
import runpy

import numpy as np
import pytest
import torch

pytest.register_assert_rewrite("helpers", "oracles", "toys")

from helpers import ROOT, make_folder  # noqa: E402

from usl.data.datasets import open_dataset  # noqa: E402


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    """What is logged reaches caplog, whether or not an earlier test has started a run."""
    monkeypatch.setattr(logging.getLogger("usl"), "propagate", True)


@pytest.fixture(autouse=True)
def seeds():
    """Every test draws the same numbers, whichever tests ran before it."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def script(monkeypatch):
    """Call main(argv) of "stage/script.py" in this process, from its own folder."""

    def call(name, *argv):
        path = ROOT / name
        monkeypatch.chdir(path.parent)
        runpy.run_path(str(path))["main"]([str(a) for a in argv])

    return call


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """A folder of images of every kind that people have."""
    return make_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def folder_images(image_folder):
    return open_dataset("imagenet", image_folder, workers=2)
