"""Image files in an object store, read where they lie: ``s3://bucket/folder``, ``gs://…``, …"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from usl.data.archive import LARGEST, inside_of
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
        self.url, _, self._options = url.partition("?")
        self.url = self.url.rstrip("/")
        _check(self.url, self._options)
        store, root = self._open()
        try:
            found = [file for file in store.get_file_info(self._below(root)) if file.is_file]
        except (OSError, ValueError) as error:
            raise InputError(f"cannot list {self.url}: {_reason(error)}; {ADVICE}") from None
        self.names = tuple(
            inside_of(self.url, file.path.removeprefix(root).removeprefix("/")) for file in found
        )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InputError(
                f"{self.url} has two files {twice[0]!r} but for slashes; rename one of them"
            )
        self._stamps = {
            name: f"{file.size}\0{file.mtime_ns}"
            for name, file in zip(self.names, found, strict=True)
        }

    def __getstate__(self) -> dict[str, Any]:
        # On another machine it is opened anew, but not listed.
        return {name: value for name, value in vars(self).items() if name != "_store"}

    def read(self, name: str) -> bytes:
        """The bytes of a file; from any thread.

        Raises
        ------
        InputError
            Gone, or larger than a gibibyte.
        Unreachable
            Nobody answers, or no right to read it.
        """
        store, root = self._open()
        try:
            with store.open_input_file(f"{root}/{name}") as file:
                if file.size() > LARGEST:
                    raise InputError(
                        f"cannot read {self.url}/{name}: it has {file.size():,} bytes; leave it out"
                    )
                content: bytes = file.read()
                return content
        except FileNotFoundError as error:
            raise InputError(f"cannot read {self.url}/{name}: {_reason(error)}") from None
        except (OSError, ValueError) as error:
            raise Unreachable(
                f"cannot read {self.url}/{name}: {_reason(error)}; run the command again, which "
                "goes on"
            ) from None

    def fingerprint(self, names: tuple[str, ...]) -> str:
        """SHA-256 of the names, sizes and times of last change of some files."""
        lines = (f"{name}\0{self._stamps[name]}\n" for name in names)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _open(self) -> tuple[Any, str]:
        """Pyarrow's file system and the path in it."""
        if "_store" not in vars(self):
            options = self._options
            if self.url.startswith("gs://") and "retry_limit_seconds" not in options:
                options += f"&retry_limit_seconds={PATIENCE}"
            url = quote(self.url, safe=SAFE) + (f"?{options.lstrip('&')}" if options else "")
            try:
                from pyarrow.fs import FileSystem
            except ImportError:
                raise InputError(f"{self.url} needs pyarrow: pip install pyarrow") from None
            try:
                self._store = FileSystem.from_uri(url)
            except (OSError, ValueError) as error:
                raise InputError(f"cannot open {self.url}: {_reason(error)}; {ADVICE}") from None
        store, root = self._store
        return store, root

    @staticmethod
    def _below(root: str) -> Any:
        from pyarrow.fs import FileSelector

        return FileSelector(root, recursive=True)


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
