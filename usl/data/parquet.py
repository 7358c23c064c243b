"""Image files in a column of a parquet file, as Hugging Face's data sets have them."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from usl.data.archive import ADVICE, LARGEST, Archive
from usl.data.listing import is_image
from usl.errors import InputError

# Row groups that are kept.
GROUPS = 2


class Parquet(Archive):
    """A ``.parquet`` with a column of image files, as Hugging Face's data sets have them.

    That is the only column of bytes, or of structures with a field ``bytes``, or of several the one
    that is called ``image``. Files are called by their rows, from 0 on, and by what the first one
    is: ``000017.jpeg``.
    """

    def _opened(self, file: BinaryIO) -> _Reader:
        return _Reader(parquet_file(file, self.label))

    def _listed(self) -> tuple[str, ...]:
        with self._reader() as reader:
            file = reader.file
            self._column = _column_of_images(file.schema_arrow, self.label)
            sizes = _group_sizes(file.metadata, self._column, self.label)
            suffix = _suffix(file, self._column)
        # Rows before each row group.
        self._begins = [0, *accumulate(sizes)]
        digits = len(str(max(self._begins[-1] - 1, 0)))
        return tuple(f"{row:0{digits}}{suffix}" for row in range(self._begins[-1]))

    def _read(self, name: str) -> bytes:
        row = int(name.partition(".")[0])
        group = bisect_right(self._begins, row) - 1
        with self._reader() as reader:
            content = _bytes_of(reader.group(group, self._column)[row - self._begins[group]])
        if content is None:
            raise InputError("the row has no image; leave it out")
        return content


class _Reader:
    """A parquet file, and the row groups that were read last."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.groups: dict[int, Any] = {}

    def group(self, number: int, column: str) -> Any:
        """A column of a row group."""
        if number not in self.groups:
            while len(self.groups) >= GROUPS:
                self.groups.pop(next(iter(self.groups)))
            self.groups[number] = self.file.read_row_group(number, columns=[column]).column(0)
        return self.groups[number]


def _group_sizes(metadata: Any, column: str, label: str) -> list[int]:
    """Rows of each row group; InputError where one does not fit into memory."""
    sizes = []
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = (group.column(place) for place in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == column)
        if size > LARGEST:
            raise InputError(
                f"row group {number} of {label} has {size:,} bytes of images; write groups of a "
                "hundred rows"
            )
        sizes.append(group.num_rows)
    return sizes


def _suffix(file: Any, column: str) -> str:
    """What the first image is, as a file's suffix."""
    for batch in file.iter_batches(batch_size=1, columns=[column]):
        try:
            with Image.open(io.BytesIO(_bytes_of(batch.column(0)[0]) or b"")) as picture:
                suffix = f".{(picture.format or '').lower()}"
                return suffix if is_image(f"x{suffix}") else ".jpeg"
        except Exception:  # whoever decodes it says what is wrong
            break
    return ".jpeg"


def parquet_file(file: Any, label: str) -> Any:
    """Open a parquet file.

    Raises
    ------
    InputError
        pyarrow is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise InputError(f"reading {label} needs pyarrow; pip install pyarrow") from None
    # What is ahead would be read in full, and kept.
    return parquet.ParquetFile(file, pre_buffer=False)


def has_images(path: Path, names: Sequence[str]) -> bool:
    """Whether a parquet file of this machine has images, and not their names in these columns."""
    try:
        with path.open("rb") as file:
            schema = parquet_file(file, str(path)).schema_arrow
            found = _columns_of_bytes(schema)
    except InputError:
        raise
    except Exception:  # whoever reads it as a table says what is wrong
        return False
    named = any(name in schema.names and name not in found for name in names)
    return "image" in found or (bool(found) and not named)


def _columns_of_bytes(schema: Any) -> dict[str, str]:
    """The columns of bytes of a parquet file, and what to read of each."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = {}
    for field in schema:
        if is_bytes(field.type):
            found[field.name] = field.name
        elif types.is_struct(field.type):
            place = field.type.get_field_index("bytes")
            if place >= 0 and is_bytes(field.type.field(place).type):
                found[field.name] = f"{field.name}.bytes"
    return found


def _column_of_images(schema: Any, label: str) -> str:
    found = _columns_of_bytes(schema)
    if not found:
        raise InputError(f"{label} has no column of image files; {ADVICE}")
    if len(found) > 1 and "image" not in found:
        raise InputError(
            f"{label} has several columns of bytes, {', '.join(found)}; call that of images image"
        )
    return found["image"] if "image" in found else next(iter(found.values()))


def _bytes_of(cell: Any) -> bytes | None:
    value = cell.as_py()
    content: bytes | None = value["bytes"] if isinstance(value, dict) else value
    return content
