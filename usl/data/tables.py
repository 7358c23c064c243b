"""Tables of features from files: arrays, tensors, CSV, parquet, folders of shards."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from usl.artifacts import load_array
from usl.checkpoints import read_tensor
from usl.config.paths import is_file
from usl.data.folder import FolderDataset
from usl.data.listing import inside
from usl.engines.local import LOCAL, Local
from usl.errors import InputError

log = logging.getLogger("usl")

TENSORS = (".pt", ".pth", ".safetensors")
# Columns of numbers that are no features, whatever the case of their names.
NUMBERS = ("index", "id", "label", "unnamed: 0")
ADVICE = "give a table of shape (images, dimensions)"


@dataclass(frozen=True)
class FeatureTable:
    """What a file of features holds.

    Attributes
    ----------
    values : ndarray or Tensor
        (N, D), as it is in the file; arrays are mapped into memory where the format allows it.
    ids : tuple of str, or None
        What each row is called.
    images : tuple of str, or None
        The picture of each row.
    """

    values: np.ndarray | Tensor
    ids: tuple[str, ...] | None = None
    images: tuple[str, ...] | None = None


def read_table(
    path: Path, *, id_column: str = "", image_column: str = "", engine: Local = LOCAL
) -> FeatureTable:
    """Read features from ``.npy``, ``.npz``, ``.pt``, ``.safetensors``, ``.csv``, ``.parquet``.

    A folder is read as shards: its ``.npy`` files in the order of their names, one after the other.
    Of a CSV or parquet file one column of vectors is taken, or all columns of numbers.

    Parameters
    ----------
    path : Path
    id_column, image_column : str
        Columns of a CSV or parquet file that name the rows and their pictures.
    engine : Local or another engine
        Has room for shards put together.

    Raises
    ------
    InputError
        Unreadable, no table, or without a column that is asked for.
    """
    if path.suffix.lower() in (".csv", ".parquet"):
        return _from_columns(path, id_column, image_column)
    if id_column:
        raise InputError(f"`id_column` is {id_column!r}, and {path} has no columns; give a .csv")
    if image_column:
        raise InputError(
            f"`image_column` is {image_column!r}, and {path} has no columns; give a .csv"
        )
    if os.path.isdir(path):
        return FeatureTable(_shards(path, engine))
    if path.suffix in TENSORS:
        return FeatureTable(_squeezed(read_tensor(path).detach(), path))
    return FeatureTable(_squeezed(load_array(path, kind="fiu", advice=ADVICE), path))


def _squeezed(array: np.ndarray | Tensor, path: Path) -> np.ndarray | Tensor:
    """(N, 1, D) as (N, D), with a word; other shapes as they are."""
    if array.ndim == 3 and array.shape[1] == 1:
        log.warning(
            "%s has shape %s; taken as a table without its middle", path, tuple(array.shape)
        )
        return array[:, 0]
    return array


def _shards(folder: Path, engine: Local) -> np.ndarray:
    paths = sorted(folder.glob("*.npy"), key=_as_counted)
    if not paths:
        raise InputError(f"{folder} has no .npy files; put shards of features there")
    parts = [load_array(path, shape=(None, None), kind="fiu", advice=ADVICE) for path in paths]
    for path, part in zip(paths, parts, strict=True):
        if part.shape[1] != parts[0].shape[1]:
            raise InputError(
                f"{path} has {part.shape[1]} columns, and {paths[0].name} has {parts[0].shape[1]}; "
                "give shards of one table"
            )
    log.info(
        "features: %d shards of %s, from %s to %s",
        len(paths),
        folder,
        paths[0].name,
        paths[-1].name,
    )
    # As they are used: all that float32 does not hold is float64.
    kind = np.result_type(*parts)
    dtype = torch.float32 if kind.kind == "f" and kind.itemsize <= 4 else torch.float64
    size = sum(map(len, parts))
    whole: np.ndarray = engine.zeros(size, parts[0].shape[1], dtype=dtype).numpy()
    return np.concatenate(parts, out=whole, casting="same_kind")


def _as_counted(path: Path) -> list[tuple[int, str]]:
    """A key that sorts ``part_10`` after ``part_9``."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(int(part) if part.isdecimal() else 0, part) for part in parts]


def _from_columns(path: Path, id_column: str, image_column: str) -> FeatureTable:
    if path.suffix.lower() == ".csv":
        _check_header(path)
    table = read_frame(path, ADVICE, texts=[name for name in (id_column, image_column) if name])
    known = ", ".join(map(str, table.columns[:12]))
    if id_column and id_column not in table:
        raise InputError(f"{path} has no column {id_column!r}, `id_column`; it has {known}")
    if image_column and image_column not in table:
        raise InputError(f"{path} has no column {image_column!r}, `image_column`; it has {known}")
    ids, images = _texts(table, id_column, path), _texts(table, image_column, path)
    rest = table.drop(columns=[column for column in {id_column, image_column} if column])
    vectors = [str(name) for name in rest if _is_vector(rest[name])]
    if len(vectors) > 1:
        raise InputError(f"{path} has several columns of vectors, {', '.join(vectors)}; keep one")
    if vectors:
        return FeatureTable(_stacked(rest[vectors[0]], path), ids, images)
    numbers = [
        name
        for name in rest
        if pd.api.types.is_numeric_dtype(rest[name])
        and not pd.api.types.is_bool_dtype(rest[name])
        and str(name).lower() not in NUMBERS
    ]
    if not numbers:
        raise InputError(f"{path} has no columns of numbers and none of vectors; {ADVICE}")
    left = [str(name) for name in rest if name not in numbers]
    without = f"; left out {', '.join(left)}" if left else ""
    log.info("features: %d columns of %s%s", len(numbers), path, without)
    return FeatureTable(rest[numbers].to_numpy(np.float64), ids, images)


def _check_header(path: Path) -> None:
    """Raise InputError where the first line of a CSV is a row of the table.

    Numbers may be names of columns: whole ones that count up, as pandas writes them.
    """
    first = read_frame(path, ADVICE, rows=1)
    names = pd.to_numeric(first.iloc[0], errors="coerce").dropna().tolist()
    counted = names == [names[0] + place for place in range(len(names))]
    broken = any(not float(name).is_integer() for name in names)
    if broken or (len(names) == first.shape[1] and not counted):
        raise InputError(
            f"the first line of {path} has numbers where names of columns belong; put a line of "
            "names before it"
        )


def read_frame(
    path: Path, advice: str, *, texts: Sequence[str] = (), rows: int | None = None
) -> pd.DataFrame:
    """The columns of a ``.csv`` or ``.parquet``; ``advice`` ends the error of one that is none.

    The columns ``texts`` of a CSV are texts as they stand there, ``007`` and ``NA`` too. With
    ``rows`` so many lines of a CSV, from the first, whose columns then have no names.

    Raises
    ------
    InputError
        Not there, damaged, or parquet without its package.
    """
    try:
        if path.suffix.lower() != ".csv":
            return pd.read_parquet(path)
        if rows is not None:
            return pd.read_csv(path, header=None, nrows=rows)
        return pd.read_csv(path, converters=dict.fromkeys(texts, str))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; {advice}") from None
    except ImportError:
        raise InputError(f"reading {path} needs pyarrow; pip install pyarrow") from None
    except Exception as error:  # parsers raise errors of any kind
        reason = " ".join(str(error).split())
        raise InputError(
            f"cannot read {path}: {reason or type(error).__name__}; {advice}"
        ) from None


def _texts(table: pd.DataFrame, column: str, path: Path) -> tuple[str, ...] | None:
    if not column:
        return None
    missing = np.flatnonzero(table[column].isna() | (table[column] == ""))
    if len(missing):
        raise InputError(f"row {missing[0]} of {path} has no {column}; fill it in")
    return tuple(table[column].astype(str))


def _is_vector(column: pd.Series) -> bool:
    first = column.iloc[0] if len(column) else None
    return isinstance(first, list | tuple | np.ndarray) or (
        isinstance(first, str) and first.strip().startswith("[") and first.strip().endswith("]")
    )


def _stacked(column: pd.Series, path: Path) -> np.ndarray:
    rows: list[np.ndarray] = []
    for number, value in enumerate(column):
        try:
            vector = (
                np.array(value.strip().strip("[]").replace(",", " ").split(), dtype=np.float64)
                if isinstance(value, str)
                else np.asarray(value, dtype=np.float64)
            )
            if vector.ndim != 1 or (rows and len(vector) != len(rows[0])):
                raise ValueError
        except (ValueError, TypeError):
            raise InputError(
                f"row {number} of {path} has no vector of {len(rows[0]) if rows else 'several'} "
                "numbers; give each row one"
            ) from None
        rows.append(vector)
    return np.stack(rows)


def pictures(names: tuple[str, ...], folder: Path, where: str) -> FolderDataset:
    """The pictures of rows, in files below a folder; ``where`` says what named them.

    Raises
    ------
    InputError
        A name that leads out of the folder, or a file that is not there.
    """
    paths = []
    for row, name in enumerate(names):
        path = inside(name, folder)
        if path is None:
            raise InputError(
                f"row {row} of {where}, {name!r}, leads out of {folder}; move it there"
            )
        if not is_file(folder / path):
            raise InputError(
                f"row {row} of {where}, {name!r}, is no file in {folder}; mend the name"
            )
        paths.append(path)
    return FolderDataset("pictures", "train", folder, tuple(paths), None, (), as_seen=True)
