"""What a loader is to the registry: how it recognises a file, and what it makes of it.

A file is judged by its content first: a pickle is a pickle whatever it is called. A loader sees the first bytes, or the
names in an archive, and never opens the file to recognise it, so that nothing in it runs.
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from converter.load.source import SourceModel
from converter.spec import Spec
from edge_runtime.errors import CommandError

_HEAD_BYTES = 65536


@dataclass(frozen=True, slots=True)
class ModelFile:
    """What the user named, as far as it was looked at.

    Attributes:
        path: the file or folder; a `module:function` is no file at all.
        head: the first bytes of a file; empty for archives and folders.
        suffix: of the file's name, in lower case; empty for archives and folders.
        members: the names in a zip archive; None for other files.
    """

    path: Path
    head: bytes = b""
    suffix: str = ""
    members: frozenset[str] | None = None

    @classmethod
    def look_at(cls, path: Path) -> "ModelFile":
        """Read what recognition needs.

        Raises:
            CommandError: it cannot be read, is empty, or a damaged archive.
        """
        try:
            with path.open("rb") as file:
                head = file.read(_HEAD_BYTES)
        except FileNotFoundError as error:
            raise CommandError(f"{path}: expected a model file, found no such file") from error
        except OSError as error:
            raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
        if not head:
            raise CommandError(f"{path}: expected a model, found an empty file")
        if not head.startswith(b"PK"):
            return cls(path, head, path.suffix.lower())
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(path, members=frozenset(archive.namelist()))
        except (zipfile.BadZipFile, OSError) as error:
            raise CommandError(
                f"{path}: expected a whole archive, found a damaged or truncated one: {error}"
            ) from error

    @property
    def in_words(self) -> str:
        """What it is where no loader knows it."""
        if self.members is not None:
            return "an archive that no loader knows"
        return f"a file that no loader knows (suffix {self.suffix or 'none'})"


@dataclass(frozen=True, slots=True)
class Loader:
    """One framework.

    Attributes:
        name: as messages list it.
        recognise: the kind of a file that this loader takes, in its own words; None for any other.
        load: makes the model of the file, the specification, that kind, and whether code in the file may run.
    """

    name: str
    recognise: Callable[[ModelFile], str | None]
    load: Callable[[Path, Spec, str, bool], SourceModel]
