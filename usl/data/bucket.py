"""Image files in an object store, read where they lie: ``s3://bucket/folder``, ``gs://…``, …"""

from __future__ import annotations

import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, quote, urlsplit

from usl.data.archive import LARGEST, inside_of
from usl.data.archives import is_archive
from usl.errors import InputError, Unreachable

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.+")
# Google's client tries for a quarter of an hour unless it is told otherwise.
PATIENCE = 30
# What may come behind a question mark: no secrets, since it is written into RUN_DIR.
OPTIONS = ("region", "scheme", "endpoint_override", "retry_limit_seconds", "project_id")
ADVICE = "give a URL such as s3://bucket/folder that your credentials may list"
# What stays of a URL where spaces and letters beyond ASCII are quoted.
SAFE = "%/:@!$&'()*+,;=~[]"


class Bucket:
    """Files below a URL that pyarrow knows: S3, Google Cloud Storage, Azure, HDFS or ``file://``.

    Where the URL is that of an archive, that is the only file, in the folder above it.

    Credentials are where those of each are: files of the cloud's own tools, or environment
    variables; pyarrow finds them.

    Parameters
    ----------
    url : str

    Attributes
    ----------
    names : tuple of str
        Of its files, from the URL on, in the order of the listing.

    Raises
    ------
    InputError
        pyarrow is not installed, an unknown kind of URL, a password in it, nothing there, no right
        to list it, or nobody answers.
    """

    def __init__(self, url: str) -> None:
        # What people see; options that pyarrow takes come after it.
        self.label, _, self._options = url.partition("?")
        self.label = self.label.rstrip("/")
        _check(self.label, self._options)
        store, root = self.store
        try:
            found = store.get_file_info([root]) if is_archive(self.label) else []
            if any(file.is_file for file in found):
                # In the folder above it.
                self.label, root = (place.rpartition("/")[0] for place in (self.label, root))
                self._store = store, root
            else:
                found = store.get_file_info(self._below(root))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot list {self.label}: {_reason(error)}; {ADVICE}") from None
        found = [file for file in found if file.is_file]
        self.names = tuple(
            inside_of(self.label, file.path.removeprefix(root).removeprefix("/")) for file in found
        )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InputError(
                f"{self.label} has two files {twice[0]!r} but for slashes; rename one of them"
            )
        self._found = {
            name: (file.size or 0, file.mtime_ns)
            for name, file in zip(self.names, found, strict=True)
        }

    def __getstate__(self) -> dict[str, Any]:
        # On another machine it is opened anew, but not listed.
        return {name: value for name, value in vars(self).items() if name != "_store"}

    def read(self, name: str) -> bytes:
        """See :class:`usl.data.archive.Source`."""
        size = self._found[name][0]
        if size > LARGEST:
            raise InputError(
                f"cannot read {self.label}/{name}: it has {size:,} bytes; leave it out"
            )
        with self.opened(name) as file:
            content: bytes = file.read()
            return content

    def file(self, name: str) -> BucketFile:
        """One of its files, to be read in parts."""
        return BucketFile(self, name, *self._found[name])

    @contextmanager
    def opened(self, name: str) -> Iterator[Any]:
        """One of its files, open; errors of the store are ours.

        Raises
        ------
        InputError
            It is gone.
        Unreachable
            Nobody answers, or no right to read it.
        """
        store, root = self.store
        try:
            with store.open_input_file(f"{root}/{name}") as file:
                yield file
        except FileNotFoundError as error:
            raise InputError(f"cannot read {self.label}/{name}: {_reason(error)}") from None
        except (OSError, ValueError) as error:
            raise _silent(f"{self.label}/{name}", error) from None

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """SHA-256 of the names, sizes and times of last change of some files."""
        lines = ("\0".join(map(str, (name, *self._found[name]))) + "\n" for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def store(self) -> tuple[Any, str]:
        """Pyarrow's file system and the path in it."""
        if "_store" not in vars(self):
            options = self._options
            if self.label.startswith("gs://") and "retry_limit_seconds" not in options:
                options += f"&retry_limit_seconds={PATIENCE}"
            url = quote(self.label, safe=SAFE) + (f"?{options.lstrip('&')}" if options else "")
            try:
                from pyarrow.fs import FileSystem
            except ImportError:
                raise InputError(f"{self.label} needs pyarrow: pip install pyarrow") from None
            try:
                self._store = FileSystem.from_uri(url)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot open {self.label}: {_reason(error)}; {ADVICE}") from None
        store, root = self._store
        return store, root

    @staticmethod
    def _below(root: str) -> Any:
        from pyarrow.fs import FileSelector

        return FileSelector(root, recursive=True)


class BucketFile:
    """A file in a bucket that is read in parts, see :class:`usl.data.archive.File`."""

    def __init__(self, bucket: Bucket, name: str, size: int, changed: int) -> None:
        self.bucket, self.name, self.size = bucket, name, size
        self.label, self.stamp = f"{bucket.label}/{name}", f"{size}\0{changed}"
        self.near = False

    def open(self) -> BinaryIO:
        """Open it, to read it from any place in it."""
        store, root = self.bucket.store
        return cast(BinaryIO, _Answering(store.open_input_file(f"{root}/{self.name}"), self.label))


class _Answering(io.RawIOBase):
    """A file in a bucket, whose errors are those of the bucket, not of what is in the file."""

    def __init__(self, file: Any, label: str) -> None:
        self._inner, self._label = file, label

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._inner.seek(offset, whence))

    def tell(self) -> int:
        return int(self._inner.tell())

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._inner.readinto(buffer))
        except OSError as error:
            raise _silent(self._label, error) from None

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()


def _silent(label: str, error: Exception) -> Unreachable:
    return Unreachable(
        f"cannot read {label}: {_reason(error)}; run the command again, which goes on"
    )


def _check(url: str, options: str) -> None:
    """Raise InputError where a URL says what should be in no file."""
    try:
        secret = urlsplit(url).password is not None
    except ValueError as error:
        raise InputError(f"cannot open {url}: {_reason(error)}; {ADVICE}") from None
    if secret:
        raise InputError(
            "the URL of the images has a password in it, which would be written into RUN_DIR; put "
            "it where the cloud's own tools look for it"
        )
    others = [key for key, _ in parse_qsl(options, keep_blank_values=True) if key not in OPTIONS]
    if others:
        raise InputError(
            f"{url} has the option {others[0]!r}; give some of {', '.join(OPTIONS)}, and secrets "
            "where the cloud's own tools look for them"
        )


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")
