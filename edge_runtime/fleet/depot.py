"""Serves bundles by their digest to devices that follow their desired state: the file end of a signed rollout.

A device asks for a chunk on `edge/{device}/ota/want`, with the SHA-256 of the file; the chunk goes out on
`edge/{device}/ota/chunk/...`. The depot signs nothing and has no state: it may be stopped and started anywhere, and
several may run. Guarantee: it sends only bytes of the named files, and none of a file that has changed. Bundles that
are added to a folder later are found at the first request for them. Weak point: a request for an unknown digest is
counted, shown once, and not answered, since another depot may have the file.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_line import CONNECTED, BrokerLine, Login

MOST_BYTES = 1024 * 1024  # of one chunk; a device asks for far less
TRANSFER = "depot"  # the names of a desired state's transfers; those of `flash` have their own sender
MOST_UNKNOWN = 1000  # digests that are counted one by one
LOOK_AGAIN_S = 1.0  # between two looks at the folders
_LOOK_S = 1.0


class Depot:
    """Files by their digest.

    Args:
        paths: bundles, or folders whose `.onnx` files are meant.

    Raises:
        CommandError: a file cannot be read, or there is none.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = list(paths)
        self.files: dict[str, Path] = {}
        self._seen: dict[Path, tuple[int, int, int]] = {}  # size and time of each file when it was read
        self._looked = 0.0
        self.unknown: Counter[str] = Counter()
        self.sent = 0
        self._look()
        if not self.files:
            raise CommandError("expected bundles to serve, found none: name .onnx files, or a folder of them")

    def _look(self) -> None:
        """Read the digests of new and changed files.

        Raises:
            CommandError: a file that was named cannot be read.
        """
        self._looked = time.monotonic()
        for path in self._paths:
            for file in sorted(path.glob("*.onnx")) if path.is_dir() else [path]:
                try:
                    state = _state(file)
                    if self._seen.get(file) != state:
                        self.files = {digest: each for digest, each in self.files.items() if each != file}
                        self.files[hashlib.sha256(file.read_bytes()).hexdigest()] = file
                        self._seen[file] = state
                except OSError as error:
                    raise CommandError(f"{file}: cannot be read: {error.strerror}") from error

    def _find(self, digest: str) -> Path | None:
        """The file of a digest, unchanged since its digest was computed."""
        path = self.files.get(digest)
        try:
            if path is not None and _state(path) == self._seen.get(path):
                return path
            if time.monotonic() - self._looked >= LOOK_AGAIN_S:
                self._look()
        except (OSError, CommandError):
            return None  # gone, or not readable now
        return self.files.get(digest)

    def chunk(self, want: dict[str, Any]) -> bytes | None:
        """The requested bytes; None where this depot does not have them."""
        transfer, digest = want.get("transfer"), want.get("sha256")
        offset, count = want.get("offset"), want.get("bytes")
        if not isinstance(transfer, str) or not isinstance(digest, str):
            return None
        if not transfer.startswith(TRANSFER) or not (transfer.isascii() and transfer.isalnum()):
            return None  # it is a level of the topic of the answer
        if not isinstance(offset, int) or not isinstance(count, int) or offset < 0 or not 0 < count <= MOST_BYTES:
            return None
        path = self._find(digest)
        if path is None:
            if digest in self.unknown or len(self.unknown) < MOST_UNKNOWN:
                self.unknown[digest] += 1
            return None
        try:
            with path.open("rb") as file:
                file.seek(offset)
                found = file.read(count)
        except OSError:
            return None
        return found if len(found) == count else None

    def serve(self, login: Login, report: Callable[[str], None], *, ended: Callable[[], bool] = lambda: False) -> None:
        """Answer devices until `ended`.

        Raises:
            AwayError: the broker cannot be reached.
            RefusedError: it refuses the subscription or the publication.
        """
        begun: set[str] = set()
        with BrokerLine(login, ["+/ota/want"]) as line:
            while not ended():
                heard = line.hear(_LOOK_S)
                if heard is None:
                    continue
                if heard.topic == CONNECTED:
                    report(f"serving {len(self.files)} bundles on {login.url}")
                    continue
                try:
                    want = msgspec.json.decode(heard.payload, type=dict[str, Any])
                except (msgspec.MsgspecError, ValueError, RecursionError):
                    continue  # no document of ours
                chunk = self.chunk(want)
                device = heard.topic.partition("/")[0]
                if chunk is None:
                    digest = want.get("sha256")
                    if isinstance(digest, str) and self.unknown.get(digest) == 1:
                        report(f"{device}: asks for a file that is not here, {digest[:12]}")
                    continue
                if want["offset"] == 0 and device not in begun:
                    report(f"{device}: {self.files[want['sha256']].name}")
                    begun.add(device)
                self.sent += 1
                line.publish(f"{device}/ota/chunk/{want['transfer']}/{want['offset']}", chunk)


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
