"""Image files in a column of a parquet file, as Hugging Face's data sets have them."""

from __future__ import annotations

import io
from bisect import bisect_right
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image

from usl.data.archive import ADVICE, Archive
from usl.errors import InputError

# Row groups that are kept.
GROUPS = 2


class Parquet(Archive):
    """A ``.parquet`` with a column of image files, as Hugging Face's data sets have them.

    That is the only column of bytes, or of structures with a field ``bytes``, or of several the one
    that is called ``image``. Files are called by their rows, from 0 on, and by what the first one
    is: ``000017.jpeg``.
    """

    def _listed(self) -> tuple[str, ...]:
        self._column = _column_of_images(self._parquet.schema_arrow, self.label)
        groups = self._parquet.metadata
        sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
        # Rows before each row group.
        self._begins = [0, *accumulate(sizes)]
        count = self._begins[-1]
        digits, suffix = len(str(max(count - 1, 0))), self._suffix()
        return tuple(f"{row:0{digits}}{suffix}" for row in range(count))

    def _read(self, name: str) -> bytes:
        row = int(name.partition(".")[0])
        group = bisect_right(self._begins, row) - 1
        content = _bytes_of(self._group(group)[row - self._begins[group]])
        if content is None:
            raise InputError("the row has no image; leave it out")
        return content

    def _group(self, number: int) -> Any:
        """The column of images of a row group."""
        with self._lock:
            groups = vars(self).setdefault("_groups", {})
            if number not in groups:
                while len(groups) >= GROUPS:
                    groups.pop(next(iter(groups)))
                table = self._parquet.read_row_group(number, columns=[self._column])
                groups[number] = table.column(0)
            return groups[number]

    def _suffix(self) -> str:
        for batch in self._parquet.iter_batches(batch_size=1, columns=[self._column]):
            content = _bytes_of(batch.column(0)[0])
            try:
                with Image.open(io.BytesIO(content or b"")) as picture:
                    return f".{(picture.format or 'jpeg').lower()}"
            except (OSError, ValueError):
                break
        return ".jpeg"

    @cached_property
    def _parquet(self) -> Any:
        return parquet_file(self.file.open(), self.label)


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
        raise InputError(f"reading {label} needs pyarrow; pip install 'usl[parquet]'") from None
    return parquet.ParquetFile(file)


def has_images(path: Path) -> bool:
    """Whether a parquet file of this machine has a column of bytes."""
    try:
        with path.open("rb") as file:
            return bool(_columns_of_bytes(parquet_file(file, str(path)).schema_arrow))
    except InputError:
        raise
    except Exception:  # whoever reads it as a table says what is wrong
        return False


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
