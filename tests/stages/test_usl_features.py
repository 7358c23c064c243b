"""USL on tables that people bring: names, pictures, and what is written of the picks."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from commands import CIFAR, FEATURES, MINE
from helpers import csv_rows, printed_alone
from PIL import Image

from usl import InputError
from usl.geometry.hierarchy import hierarchical_kmeans
from usl.geometry.kmeans import member_sums
from usl.geometry.neighbors.exact import find_neighbors
from usl.selectors.maxherding import herding_picks


@pytest.fixture
def pets(tmp_path):
    """A CSV of 30 named rows of features, each with a picture."""
    x = np.random.RandomState(0).randn(30, 4)
    names = [f"pet {i}" for i in range(29)] + ['=HYPERLINK("x")']
    pictures = [f"pictures/{i}.png" for i in range(30)]
    (tmp_path / "pictures").mkdir()
    for i, name in enumerate(pictures):
        Image.new("RGB", (9, 9), (8 * i, 0, 0)).save(tmp_path / name)
    columns = {f"d{i}": x[:, i] for i in range(4)}
    table = pd.DataFrame({"name": names, "picture": pictures} | columns)
    table.to_csv(tmp_path / "pets.csv", index=False)
    return tmp_path / "pets.csv"


def options(path, run, *more):
    return (
        "--cfg", "configs/features_usl.yaml", "--opts", "FEATURES.PATH", path, "RUN_DIR", run,
        "USL.NUM_SELECTED_SAMPLES", 5, "USL.KNN_K", 3, *more,
    )  # fmt: skip


def test_what_is_said_before_a_run_begins_is_shown_and_in_its_log(pets, tmp_path, script, capsys):
    table = pd.read_csv(pets)
    table = table.astype({"d1": object})
    table.loc[3, "d1"] = "oops"
    table.to_csv(pets, index=False)
    script(FEATURES, *options(pets, tmp_path / "run"))
    said = f"features: 3 columns of {pets}; left out name, picture, d1\n"
    assert capsys.readouterr().err.count(said) == 1
    assert (tmp_path / "run" / "run.log").read_text().count(said) == 1


def test_names_and_pictures_of_rows(pets, tmp_path, script, capsys):
    run = tmp_path / "run"
    more = ("FEATURES.ID_COLUMN", "name", "FEATURES.IMAGES", "picture")
    script(FEATURES, *options(pets, run, *more))
    picks = printed_alone(capsys.readouterr().out)
    rows = csv_rows(run / "selected.csv")
    assert list(rows[0]) == [
        "Rank",
        "Index",
        "ImageID",
        "Cluster",
        "ClusterSize",
        "Density",
        "Seed",
        "Round",
    ]
    assert [int(row["Index"]) for row in rows] == picks
    assert [row["Rank"] for row in rows] == list("12345") and {row["Seed"] for row in rows} == {"1"}
    labels = np.load(run / "cluster_labels_5_1.npy")
    for row in rows:
        assert row["ImageID"] == f"pet {row['Index']}"
        assert int(row["Cluster"]) == labels[int(row["Index"])]
        assert int(row["ClusterSize"]) == (labels == int(row["Cluster"])).sum()
    spread = np.load(run / "mean_d_knns_3.npy")
    np.testing.assert_allclose([float(row["Density"]) for row in rows], 1 / spread[picks])
    assert (run / "report.html").read_text().count("pictures/") >= 5
    script(FEATURES, *options(pets, run, *more, "EXPORT", "[labelstudio]"))
    tasks = json.loads((run / "exports" / "labelstudio" / "seed1" / "tasks.json").read_text())
    assert [task["data"]["path"] for task in tasks] == [f"pictures/{pick}.png" for pick in picks]
    # All rows: the name that a spreadsheet would take for a formula is harmless.
    script(FEATURES, *options(pets, run, *more, "USL.NUM_SELECTED_SAMPLES", 30))
    names = {row["Index"]: row["ImageID"] for row in csv_rows(run / "selected.csv")}
    assert names["29"] == '\'=HYPERLINK("x")'


@pytest.mark.usefixtures("no_pictures")
def test_a_list_of_pictures(pets, tmp_path, script, capsys):
    (tmp_path / "list.txt").write_text("".join(f"pictures/{i}.png\n" for i in range(30)))
    script(FEATURES, *options(pets, tmp_path / "run", "FEATURES.IMAGES", "list.txt"))
    rows = csv_rows(tmp_path / "run" / "selected.csv")
    assert [row["ImageID"] for row in rows] == [f"pictures/{row['Index']}.png" for row in rows]
    (tmp_path / "list.txt").write_text("pictures/1.png\n")
    with pytest.raises(InputError, match="list.txt has 1 lines, and .* 30 rows; give as many"):
        script(FEATURES, *options(pets, tmp_path / "run", "FEATURES.IMAGES", "list.txt"))


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("FEATURES.ID_COLUMN", "id"), "has no column 'id', FEATURES.ID_COLUMN; it has name, pict"),
        (("FEATURES.IMAGES", "face"), "has no column 'face', FEATURES.IMAGES; it has name, pict"),
        (("EXPORT", "[usb]"), "EXPORT needs the files of the rows; give FEATURES.IMAGES"),
        (("FEATURES.IMAGES", "name"), "row 0 of name, 'pet 0', is no file in .*; mend the name"),
    ],
)
def test_columns_that_are_not_there(pets, tmp_path, script, more, message):
    with pytest.raises(InputError, match=message):
        script(FEATURES, *options(pets, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_pictures")
def test_images_in_memory_have_no_names(tmp_path, script, capsys):
    argv = (
        "--cfg",
        "configs/digits_usl.yaml",
        "--opts",
        "RUN_DIR",
        tmp_path,
        "MODEL.ARCH",
        "pixels",
    )
    script(CIFAR, *argv, "USL.SEEDS", "[1, 2]", "USL.NUM_SELECTED_SAMPLES", 3)
    rows = csv_rows(tmp_path / "selected.csv")
    assert "ImageID" not in rows[0] and [row["Seed"] for row in rows] == list("111222")


@pytest.mark.usefixtures("no_pictures")
def test_a_list_of_pictures_that_is_no_text(pets, tmp_path, script):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read .*list.txt: .*; give a list of paths"):
        script(FEATURES, *options(pets, tmp_path / "run", "FEATURES.IMAGES", "list.txt"))


def test_approximate_neighbours_say_so_and_are_not_taken_for_exact_ones(
    tmp_path, script, monkeypatch, capsys
):
    monkeypatch.setattr("usl.geometry.neighbors.cells.POINTS", 40)
    monkeypatch.setattr("usl.geometry.neighbors.cells.SEARCHED", 6)
    monkeypatch.setattr("usl.stages.report.feature_map", lambda *args: None)
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(900, 20).astype(np.float32))
    run = tmp_path / "run"
    kept = options(tmp_path / "x.npy", run, "USL.KNN_K", 30, "RECOMPUTE_ALL", False)
    script(FEATURES, *kept, "KNN.BACKEND", "cells")
    assert "the search is approximate: it found" in capsys.readouterr().err
    script(FEATURES, *kept, "KNN.BACKEND", "cells")
    assert "reused d_knns_30.npy" in capsys.readouterr().err
    recall, margin = np.load(run / "recall_knns_30.npy")
    fact = f"30, approximate (cells): {100 * recall:.2f} ± {100 * margin:.2f} % of them found"
    assert 0.3 < recall < 1 and fact in (run / "report.html").read_text()
    few = np.load(run / "d_knns_30.npy")
    script(FEATURES, *kept)
    assert ", approximate (" not in (run / "report.html").read_text()
    assert np.load(run / "d_knns_30.npy").sum() < few.sum()


@pytest.mark.usefixtures("no_pictures")
def test_a_backend_that_is_not_there_names_its_key(tmp_path, script, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(90, 2))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"KNN.BACKEND faiss is not installed: pip install fai"):
        script(FEATURES, *options(tmp_path / "x.npy", tmp_path / "run", "KNN.BACKEND", "faiss"))
    assert not (tmp_path / "run").exists()


def test_another_selector(pets, tmp_path, script, capsys):
    run = tmp_path / "run"
    script(FEATURES, *options(pets, run, "SELECTOR", "maxherding", "FEATURES.ID_COLUMN", "name"))
    picks = printed_alone(capsys.readouterr().out)
    x = pd.read_csv(pets)[[f"d{i}" for i in range(4)]].to_numpy()
    assert picks == herding_picks(x, 5).tolist()
    rows = csv_rows(run / "selected.csv")
    # Each pick stands for the rows that are nearest to it.
    nearest = np.square(x[:, None] - x[picks][None]).sum(axis=2).argmin(axis=1)
    assert [int(row["ClusterSize"]) for row in rows] == np.bincount(nearest).tolist()
    assert [int(row["Cluster"]) for row in rows] == list(range(5))
    assert "maxherding" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("SELECTOR", "best"), "unknown SELECTOR 'best'; choose some of random, stratified,"),
        (("SELECTOR", "stratified"), "SELECTOR stratified needs the labels of all images, which"),
        (
            ("SELECTOR", "rdss", "USL.LABELED_INDICES_PATH", "a.npy"),
            "SELECTOR rdss does not go on from USL.LABELED_INDICES_PATH; only usl does",
        ),
        (
            ("SELECTOR", "tightest", "USL.K_MEANS", "hierarchical"),
            "SELECTOR tightest has no USL.K_MEANS hierarchical; only usl has",
        ),
        (
            ("SELECTOR", "rdss", "MEMORY_GB", 1),
            "SELECTOR rdss does not keep to MEMORY_GB; only usl does",
        ),
    ],
)
def test_selectors_that_cannot_choose_here(pets, tmp_path, script, more, message):
    with pytest.raises(InputError, match=message):
        script(FEATURES, *options(pets, tmp_path / "run", *more))
    assert not (tmp_path / "run").exists()


def test_a_selection_stopped_in_kmeans_goes_on(tmp_path, script, capsys, monkeypatch):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(400, 5))
    whole, run, more = tmp_path / "whole", tmp_path / "run", ("USL.NUM_SELECTED_SAMPLES", 30)
    script(FEATURES, *options(tmp_path / "x.npy", whole, *more))
    monkeypatch.setattr("usl.shards.SAVE_EVERY", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("usl.geometry.kmeans.member_sums", stopping(after=3))
        script(FEATURES, *options(tmp_path / "x.npy", run, *more))
    assert (run / "clusters_30_1.partial").exists()
    capsys.readouterr()
    script(FEATURES, *options(tmp_path / "x.npy", run, *more))
    assert "k-means goes on after 3 iterations" in capsys.readouterr().err
    assert not (run / "clusters_30_1.partial").exists()
    for name in ("selected.csv", "cluster_labels_30_1.npy", "centroids_30_1.npy"):
        assert (run / name).read_bytes() == (whole / name).read_bytes()


def stopping(*, after):
    """The sums of k-means, and Ctrl-C after so many."""
    left = iter(range(after))

    def sums(*given):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return member_sums(*given)

    return sums


@pytest.mark.parametrize("form", ["file", "shards", "half"])
def test_out_of_memory_the_picks_are_the_same(tmp_path, script, capsys, form):
    x = np.random.RandomState(0).randn(400, 5).astype(np.float16 if form == "half" else np.float32)
    x[17] = np.nan
    place = tmp_path / ("x.npy" if form == "file" else "x")
    if form == "file":
        np.save(place, x)
    else:
        place.mkdir()
        for start in (0, 150, 300):
            np.save(place / f"{start:03}.npy", x[start : start + 150])
    more = ("USL.NUM_SELECTED_SAMPLES", 30, "FEATURES.EXCLUDE", "nan", "FEATURES.NORMALIZE", "True")
    for name, memory in (("in memory", 0), ("in files", 1e-7)):
        script(FEATURES, *options(place, tmp_path / name / "run", *more, "MEMORY_GB", memory))
    for name in ("selected.csv", "ind_knns_3.npy", "cluster_labels_30_1.npy", "rows.npy"):
        one, other = (tmp_path / way / "run" / name for way in ("in memory", "in files"))
        assert one.read_bytes() == other.read_bytes()
    assert sorted(path.name for path in (tmp_path / "in files").iterdir()) == ["run"]


def test_memory_that_means_nothing(pets, tmp_path, script, monkeypatch):
    for more, message in (
        (("MEMORY_GB", -1), "MEMORY_GB is -1.*; choose 0 or more"),
        (("MEMORY_GB", ".nan"), "MEMORY_GB is nan; choose 0 or more"),
        (("MEMORY_GB", ".inf"), "MEMORY_GB is inf; choose 0 or more"),
        (("MEMORY_GB", 8, "SKIP_SAVE", "True"), "MEMORY_GB needs files .* SKIP_SAVE is True; leav"),
        (("MEMORY_GB", 8, "ENGINE", "ray"), "MEMORY_GB is 8.*, and ENGINE ray; choose local"),
    ):
        with pytest.raises(InputError, match=message):
            script(FEATURES, *options(pets, tmp_path / "run", *more))
    (tmp_path / "file").touch()
    np.save(tmp_path / "x.npy", np.ones((50, 3), np.float16))
    given = options(tmp_path / "x.npy", tmp_path / "file" / "run", "MEMORY_GB", 1e-7)
    with pytest.raises(InputError, match="cannot keep .* in .*/file: .*or give more MEMORY_GB"):
        script(FEATURES, *given)


def test_hierarchical_kmeans_by_name(tmp_path, script, capsys):
    np.save(tmp_path / "x.npy", np.random.RandomState(0).randn(400, 5))
    more = ("USL.NUM_SELECTED_SAMPLES", 30, "USL.K_MEANS", "hierarchical")
    script(FEATURES, *options(tmp_path / "x.npy", tmp_path / "run", *more))
    picks = printed_alone(capsys.readouterr().out)
    labels = np.load(tmp_path / "run" / "cluster_labels_30_1.npy")
    expected = hierarchical_kmeans(np.load(tmp_path / "x.npy"), 30, seed=1).labels
    assert labels.tolist() == expected.tolist()
    assert sorted(labels[picks].tolist()) == list(range(30))
    assert not list((tmp_path / "run").glob("*.partial"))
    with pytest.raises(InputError, match="USL.K_MEANS is 'tree'; choose lloyd or hierarchical"):
        script(FEATURES, *options(tmp_path / "x.npy", tmp_path / "run", "USL.K_MEANS", "tree"))


def test_neighbours_of_nearby_cells_are_not_taken_for_exact_ones(tmp_path, script):
    random = np.random.RandomState(0)
    np.save(tmp_path / "x.npy", random.randn(3000, 8).astype(np.float32))

    def mined(backend):
        script(
            MINE, "--opts", "FEATURES.PATH", tmp_path / "x.npy", "NUM_NEIGHBORS", 5,
            "KNN.BACKEND", backend, "RECOMPUTE_ALL", False, "RUN_DIR", tmp_path / "run",
        )  # fmt: skip
        return np.load(tmp_path / "run" / "topk-train-neighbors.npy")

    mined("cells")
    assert "backend" in (tmp_path / "run" / "run.json").read_text()
    exact = find_neighbors(np.load(tmp_path / "x.npy"), 6).indices.numpy()
    assert np.array_equal(mined("auto"), exact)
    assert not list(tmp_path.glob("run/*.partial"))


def test_features_of_an_encoder_have_their_length(tmp_path, script):
    argv = ("--cfg", "configs/digits_neighbors.yaml", "--opts", "FEATURES.NORMALIZE", True)
    with pytest.raises(InputError, match="FEATURES.NORMALIZE is True without a FEATURES.PATH; le"):
        script(MINE, *argv, "RUN_DIR", tmp_path / "run")
    assert not (tmp_path / "run").exists()
