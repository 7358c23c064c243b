"""Features from files of every kind, and every one that is not right."""

import logging

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from usl import InputError
from usl.data.tables import pictures, read_table

X = np.random.RandomState(0).randn(5, 3).round(3)


def as_csv(path, table):
    pd.DataFrame(table).to_csv(path, index=False)
    return path


NUMBERS = {"name": list("vwxyz"), "Index": range(5), "ok": [True] * 5} | {
    f"d{i}": X[:, i] for i in range(3)
}


@pytest.mark.parametrize("kind", ["npy", "npz", "pt", "safetensors", "csv", "vectors", "shards"])
def test_every_kind_of_file_gives_the_table(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, X)
    elif kind == "pt":
        torch.save(torch.from_numpy(X), path)
    elif kind == "safetensors":
        save_file({"x": torch.from_numpy(X)}, path)
    elif kind == "csv":
        as_csv(path, NUMBERS)
    elif kind == "vectors":
        path = as_csv(
            tmp_path / "x.csv", {"n": [9] * 5, "vector": [str(row.tolist()) for row in X]}
        )
    else:
        path.mkdir()
        np.save(path / "01.npy", X[2:])
        np.save(path / "00.npy", X[:2])
    found = read_table(path)
    assert np.array_equal(np.asarray(found.values), X)
    assert found.ids is None and found.images is None


def test_a_middle_of_one_is_left_out(tmp_path, caplog):
    np.save(tmp_path / "x.npy", X[:, None])
    torch.save(torch.from_numpy(X)[:, None], tmp_path / "x.pt")
    for name in ("x.npy", "x.pt"):
        assert np.array_equal(np.asarray(read_table(tmp_path / name).values), X)
        assert f"{name} has shape (5, 1, 3); taken as a table without its middle" in caplog.text


def test_columns_name_rows_and_pictures(tmp_path, caplog):
    caplog.set_level(logging.INFO, "usl")
    path = as_csv(tmp_path / "x.csv", NUMBERS | {"picture": [f"{i}.png" for i in range(5)]})
    found = read_table(path, id_column="name", image_column="picture")
    assert found.ids == tuple("vwxyz") and found.images[0] == "0.png"
    assert np.array_equal(found.values, X)
    assert "3 columns of" in caplog.text and "left out Index, ok" in caplog.text


def test_parquet(tmp_path):
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"vector": list(X.astype(np.float32)), "id": list("vwxyz")})
    table.to_parquet(tmp_path / "x.parquet")
    found = read_table(tmp_path / "x.parquet", id_column="id")
    assert np.array_equal(found.values, X.astype(np.float32)) and found.ids == tuple("vwxyz")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    def missing(path):
        raise ImportError

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(InputError, match=r"needs pyarrow; pip install pyarrow"):
        read_table(tmp_path / "x.parquet")


def test_shards_are_counted(tmp_path):
    for number in range(11):
        np.save(tmp_path / f"part_{number}.npy", X[:1] + number)
    found = np.asarray(read_table(tmp_path).values)
    assert np.array_equal(found, np.concatenate([X[:1] + number for number in range(11)]))


@pytest.mark.parametrize("columns", ["all", "after a name"])
def test_a_csv_without_names_of_columns_does_not_lose_its_first_row(tmp_path, columns):
    table = pd.DataFrame(X)
    if columns == "after a name":
        table.insert(0, "name", list("vwxyz"))
    table.to_csv(tmp_path / "x.csv", header=False, index=False)
    with pytest.raises(InputError, match="the first line of .*x.csv has numbers where names of co"):
        read_table(tmp_path / "x.csv")


@pytest.mark.parametrize("index", [False, True])
def test_numbers_that_count_are_names_of_columns(tmp_path, index):
    pd.DataFrame(X).to_csv(tmp_path / "x.csv", index=index)
    assert np.array_equal(np.asarray(read_table(tmp_path / "x.csv").values), X)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        ({"a": ["x"]}, {}, "has no columns of numbers and none of vectors; give a table of shape"),
        ({"a": [1.0]}, {"id_column": "b"}, "has no column 'b', `id_column`; it has a"),
        ({"a": [1.0]}, {"image_column": "b"}, "has no column 'b', `image_column`; it has a"),
        (
            {"a": [1.0, 2.0], "b": ["x", None]},
            {"id_column": "b"},
            "row 1 of .* has no b; fill it in",
        ),
        ({"a": ["[1, 2]", "[3]"]}, {}, "row 1 of .* has no vector of 2 numbers; give each row one"),
        ({"a": ["[1, x]"]}, {}, "row 0 of .* has no vector of several numbers"),
        ({"a": ["[1]"], "b": ["[2]"]}, {}, "has several columns of vectors, a, b; keep one"),
    ],
)
def test_columns_that_are_not_right(tmp_path, table, options, message):
    with pytest.raises(InputError, match=message):
        read_table(as_csv(tmp_path / "x.csv", table), **options)


def test_files_that_are_not_right(tmp_path):
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(InputError, match="cannot read .*x.csv: No columns to parse"):
        read_table(tmp_path / "x.csv")
    with pytest.raises(InputError, match="there is no file .*y.csv; give a table"):
        read_table(tmp_path / "y.csv")
    with pytest.raises(InputError, match="has no .npy files; put shards of features there"):
        read_table(tmp_path)
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(InputError, match="`id_column` is 'name', and .*a.npy has no columns"):
        read_table(tmp_path / "a.npy", id_column="name")
    np.save(tmp_path / "b.npy", X[:, :2])
    with pytest.raises(InputError, match="b.npy has 2 columns, and a.npy has 3; give shards"):
        read_table(tmp_path)


def test_pictures_lie_below_their_folder(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        (tmp_path / name).touch()
    found = pictures(("a/1.png", str(tmp_path / "2.png")), tmp_path, "list")
    assert found.paths == ("a/1.png", "2.png") and found.labels is None
    with pytest.raises(InputError, match="row 1 of list, '../2.png', leads out of"):
        pictures(("2.png", "../2.png"), tmp_path, "list")
    with pytest.raises(InputError, match="row 0 of list, '/etc/passwd', leads out of"):
        pictures(("/etc/passwd",), tmp_path, "list")
    with pytest.raises(InputError, match="row 0 of list, '3.png', is no file in"):
        pictures(("3.png",), tmp_path, "list")
