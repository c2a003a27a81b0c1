"""Locations of recordings and outputs: local files, and URLs by fsspec (the extra `batch`).

A `Remote` has the methods of a `Path` that the readers need. Guarantee: a written file gets its name when it is
complete (a transaction of fsspec: a completed upload, or a renaming). Weak point: this depends on the storage;
`memory://` is the memory of one process, so it serves one worker.
"""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from edge_runtime.errors import CommandError

NEEDS_FSSPEC = "needs fsspec, which is not installed: pip install 'edge-inference-runtime[batch]'"
_MARKS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")  # from the storage


class Remote:
    """A file behind a URL.

    Raises:
        CommandError: fsspec, or its package for this kind of URL, is not installed, or the kind is unknown.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            import fsspec  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise CommandError(f"{url}: {NEEDS_FSSPEC}") from error
        try:
            self._system, self._path = fsspec.core.url_to_fs(url)
        except ImportError as error:
            raise CommandError(f"{url}: {error}") from error
        except Exception as error:  # storages raise various types: a wrong address, no credentials
            raise CommandError(f"{url}: cannot be reached: {_first_line(error)}") from error

    def __str__(self) -> str:
        return self._url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(self._url)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(self._path).name

    @property
    def suffix(self) -> str:
        """Of the name, with its dot."""
        return PurePosixPath(self._path).suffix

    def with_name(self, name: str) -> "Remote":
        """A neighbour."""
        return Remote(self._url[: len(self._url) - len(self.name)] + name)

    def open(self, mode: str) -> IO[bytes]:
        """Read it.

        Raises:
            OSError: it cannot be read.
        """
        assert mode == "rb"
        return io.BufferedReader(_asked(self._system.open, self._path, "rb"), 1 << 20)

    def stat(self) -> Any:
        """`st_size`, and `mark`, which changes with the file.

        Raises:
            OSError: it does not exist, or cannot be read.
        """
        info = _asked(self._system.info, self._path)
        marks = [str(info[name]) for name in _MARKS if name in info]
        return SimpleNamespace(st_size=int(info["size"]), mark=marks)

    def is_dir(self) -> bool:
        """Whether it is a folder, or a prefix of files."""
        return bool(_asked(self._system.isdir, self._path))

    def files(self) -> Iterator["Remote"]:
        """The file itself, the matches of a pattern, or the files of a folder, in the order of the names."""
        if _asked(self._system.isfile, self._path):
            found = [self._path]
        elif self.is_dir():
            found = _asked(self._system.find, self._path)
        else:
            found = [path for path in _asked(self._system.glob, self._path) if _asked(self._system.isfile, path)]
        return (Remote(self._system.unstrip_protocol(path)) for path in sorted(found))

    def take(self, file: Path) -> None:
        """Upload a local file atomically.

        Raises:
            OSError: it cannot be written.
        """

        def upload() -> None:
            with self._system.transaction, file.open("rb") as local, self._system.open(self._path, "wb") as there:
                shutil.copyfileobj(local, there, 1 << 20)

        _asked(upload)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove it.

        Raises:
            OSError: it cannot be removed.
        """
        if not missing_ok or _asked(self._system.exists, self._path):
            _asked(self._system.rm_file, self._path)


Place = Path | Remote


def place(name: str) -> Place:
    """A path, or a URL; `file://` is a path of this machine.

    Raises:
        CommandError: see `Remote`.
    """
    if "://" not in name:
        return Path(name)
    parts = urlsplit(name)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Remote(name)


def mark(file: Place) -> list[Any]:
    """A mark that differs when another file has taken the name."""
    if isinstance(file, Remote):
        there = file.stat()
        return [str(file), there.st_size, there.mark]
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]


def _asked(call: Any, *arguments: Any) -> Any:
    """Call a storage, and turn its exceptions of any type into `OSError`."""
    try:
        return call(*arguments)
    except OSError:
        raise
    except Exception as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().partition("\n")[0][:300]
