"""A loader in the registry: how it recognises a file, and the function that loads it.

The content of a file decides before its name: a pickle is recognised under any name. A loader gets the first bytes, or
the names in an archive, and never opens the file to recognise it, so that no code in it runs.
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
    """The user's path with the bytes that recognition needs.

    Attributes:
        path: the file, the folder, or a `module:function`.
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
        """Read the bytes that recognition needs.

        Raises:
            CommandError: it cannot be read, is empty, or is a damaged archive.
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
        """Its kind in words, for a file that no loader takes."""
        if self.members is not None:
            return "an archive that no loader knows"
        return f"a file that no loader knows (suffix {self.suffix or 'none'})"


@dataclass(frozen=True, slots=True)
class Loader:
    """One framework.

    Attributes:
        name: in messages.
        recognise: returns the kind of a file that this loader takes; None for any other.
        load: makes the model from the file, the specification, that kind, and whether code in the file may run.
    """

    name: str
    recognise: Callable[[ModelFile], str | None]
    load: Callable[[Path, Spec, str, bool], SourceModel]
