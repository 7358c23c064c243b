"""The features that picks are chosen from: given in a file, or made of images by an encoder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from usl.artifacts import fingerprint
from usl.config.parse import CfgNode
from usl.config.paths import find_input, is_file
from usl.data.datasets import AnyDataset
from usl.data.folder import FolderDataset
from usl.data.tables import ADVICE, pictures, read_table
from usl.encoders.preprocess import Preprocess
from usl.encoders.registry import Encoder, saved_as_it_comes
from usl.engines.local import LOCAL, Local
from usl.errors import InputError
from usl.geometry.points import as_features, blocks, not_finite, taken_rows, unit_rows
from usl.inference import Features
from usl.lists.read import read_indices
from usl.lists.write import csv_for_people
from usl.run import Expected, Run, log
from usl.stages import selection
from usl.stages.inputs import encoder_of
from usl.stages.paths import NOT_FINITE


def add_features(c: CfgNode) -> CfgNode:
    """Settings of stages that take features from a file."""
    c.FEATURES = c.get("FEATURES") or CfgNode()
    # A table (images, dimensions): .npy; .npz, .pt, .pth or .safetensors of one array; .csv or
    # .parquet with a column of vectors or columns of numbers; or a folder of .npy shards.
    c.FEATURES.PATH = ""
    # Divide every row by its length first. HORIZON_DIST 4 is meant for rows of length 1.
    c.FEATURES.NORMALIZE = False
    return c


@dataclass(frozen=True)
class Pool:
    """Features to choose from, less the rows that are left out.

    Attributes
    ----------
    features : Features
    rows : ndarray (N,), int64
        Their rows in the file, or in the data set.
    size : int
        Rows of the file, or of the data set.
    made_by : str
        Whose features they are, in words.
    ids : tuple of str, or None
        What each of the ``size`` rows is called.
    images : FolderDataset, or None
        Their pictures, where the features came with some.
    stand_in : ndarray (size,), int64, or None
        For every row the one that is chosen from instead, where duplicates are left out.
    unreadable : ndarray, int64
        Rows of the data set whose files are no images.
    """

    features: Features
    rows: np.ndarray
    size: int
    made_by: str
    ids: tuple[str, ...] | None = None
    images: FolderDataset | None = None
    stand_in: np.ndarray | None = None
    unreadable: np.ndarray = field(default_factory=lambda: np.array([], dtype=np.int64))


def read_features(section: CfgNode, engine: Local = LOCAL) -> Pool:
    """The features that the FEATURES settings name; the engine has room for copies.

    Raises
    ------
    InputError
        No such file, not a table of finite numbers, or rows to leave out that are none.
    """
    if not section.PATH:
        raise InputError("FEATURES.PATH is empty; give a .npy file of shape (images, dimensions)")
    found = Path(section.PATH)
    if not os.path.isdir(found):
        found = find_input(section.PATH, "file of features (FEATURES.PATH)")
    pictured = section.get("IMAGES", "")
    listed = found.parent / pictured
    table = read_table(
        found,
        id_column=section.get("ID_COLUMN", ""),
        image_column="" if is_file(listed) else pictured,
        engine=engine,
    )
    array = table.values
    size = len(array) if array.ndim else 0
    rows = np.arange(size)
    if section.get("EXCLUDE"):
        if array.ndim != 2:
            raise InputError(f"{found} has shape {tuple(array.shape)}; {ADVICE}")
        rows = np.setdiff1d(rows, _excluded(section.EXCLUDE, array))
        if not len(rows):
            raise InputError(f"FEATURES.EXCLUDE leaves out all rows of {found}; keep some")
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            array = taken_rows(array, rows, engine)
        else:
            array = array[rows]
    try:
        features = as_features(array, f"features in {found}", rows=rows, engine=engine)
    except InputError as error:
        hint = ", with FEATURES.EXCLUDE nan" if "EXCLUDE" in section and "NaN" in str(error) else ""
        raise InputError(f"{error}{hint}") from None
    if section.NORMALIZE:
        features = unit_rows(features, str(found), rows=rows, engine=engine)
    values = features.numpy()
    names = table.images
    if is_file(listed):
        try:
            # Not splitlines: a name may hold what other systems take for the end of a line.
            text = listed.read_text(encoding="utf-8-sig").replace("\r\n", "\n")
            names = tuple(text.removesuffix("\n").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {listed}: {error}; give a list of paths") from None
        if len(names) != size:
            raise InputError(
                f"{listed} has {len(names)} lines, and {found} {size} rows; give as many"
            )
    images = None if names is None else pictures(names, found.parent, section.IMAGES)
    return Pool(
        Features(values, fingerprint(values)), rows, size, found.name, table.ids or names, images
    )


def _excluded(name: str, array: np.ndarray | torch.Tensor) -> np.ndarray:
    """Rows that FEATURES.EXCLUDE names."""
    if name == NOT_FINITE:
        if isinstance(array, torch.Tensor):
            return not_finite(array).numpy()
        parts = [
            start + not_finite(torch.from_numpy(array[start:stop].astype(np.float64))).numpy()
            for start, stop in blocks(len(array))
        ]
        return np.concatenate(parts)
    path = find_input(name, "list of rows (FEATURES.EXCLUDE)")
    excluded = np.array(read_indices(path))
    wrong = excluded[(excluded < 0) | (excluded >= len(array))]
    if len(wrong):
        raise InputError(f"{path} has the row {wrong[0]}; give rows from 0 to {len(array) - 1}")
    return excluded


def encoder_unless_given(cfg: CfgNode, images: AnyDataset) -> Encoder | None:
    """The encoder of the MODEL settings; None where RUN_DIR may have its features already."""
    there = is_file(Path(cfg.RUN_DIR) / selection.FEATURES) and not cfg.SKIP_SAVE
    return None if there and not cfg.RECOMPUTE_ALL else encoder_of(cfg, images)


def embed_pool(
    run: Run, cfg: CfgNode, images: AnyDataset, encoder: Encoder | None, *, engine: Local = LOCAL
) -> Pool:
    """Features of the images that can be read.

    Those dropped into RUN_DIR, such as released ones, need neither an encoder nor the images; else
    they are the encoder's, by default that of the settings. With DATASET.UNREADABLE skip, files
    that are no images are left out, and listed in unreadable.csv.

    Raises
    ------
    InputError
        No such encoder or weights, features that do not fit, or an image that cannot be read.
    """
    skip = cfg.DATASET.get("UNREADABLE") == "skip"
    known = (
        images.names_fingerprint() if isinstance(images, FolderDataset) else images.fingerprint()
    )
    given = {"images": known, "encoder": cfg.MODEL.ARCH, "given": True}
    if run.given(selection.FEATURES, given):
        expected = Expected(selection.FEATURES, (len(images), None), rows_of_nan=skip)
        (values,) = run.cached([expected], given, list)
        assert values is not None
        scale, made_by = saved_as_it_comes(cfg.MODEL.ARCH), f"{selection.FEATURES}, given"
        run.note(dataset=images.name, images=known)
        missing = np.isnan(values[:, 0]) if skip else np.zeros(len(images), dtype=bool)
        if missing.any():
            log.warning("rows of NaN, whose images are never picked: %d", missing.sum())
    else:
        encoder = encoder or encoder_of(cfg, images)
        values, source = selection.encoded(
            run, cfg, encoder, images, skip_unreadable=skip, engine=engine
        )
        scale, made_by = encoder.scale, str(encoder)
        log.info("encoder %s", encoder)
        run.note(dataset=images.name, **source)
        missing = np.isnan(values[:, 0])
        if missing.any():
            save_unreadable(run, images, np.flatnonzero(missing), encoder.preprocess)
        else:
            run.remove("unreadable.csv")
    rows = np.flatnonzero(~missing)
    if len(rows) < len(images):
        values = taken_rows(values, rows, engine)
    features = selection.features_of(values, scale=scale, rows=rows, engine=engine)
    ids = images.paths if isinstance(images, FolderDataset) else None
    return Pool(features, rows, len(images), made_by, ids, unreadable=np.flatnonzero(missing))


def save_unreadable(run: Run, images: AnyDataset, rows: np.ndarray, preprocess: Preprocess) -> None:
    """Write ``unreadable.csv``, with the reason for each, and name them in the log."""
    assert isinstance(images, FolderDataset)

    def read(picture: Image.Image) -> str:
        preprocess.resized(picture)
        return "readable again"

    reasons = images.each(rows.tolist(), read, instead=lambda row, error: str(error))
    names = [images.paths[row] for row in rows.tolist()]
    table = pd.DataFrame({"Index": rows, "ImageID": names, "Reason": reasons})
    run.save_text("unreadable.csv", csv_for_people(table))
    for name in names:
        log.warning("unreadable: %s", name)
    log.warning(
        "%d of %d images cannot be read and are never picked; reasons are in unreadable.csv",
        len(rows), len(images),
    )  # fmt: skip


def note_pool(run: Run, pool: Pool) -> None:
    """Record which features are chosen from, and say what is odd about them."""
    run.note(size=pool.size, features=pool.features.fingerprint)
    if len(pool.rows) < pool.size:
        run.save("rows.npy", pool.rows, {"features": pool.features.fingerprint})
    else:
        run.remove("rows.npy")
    selection.say_oddities(pool.features)
