"""Serves bundles by their digest to devices that follow their desired state: the file end of a signed rollout.

A device asks for a chunk on `edge/{device}/ota/want`, with the SHA-256 of the file; the chunk goes out on
`edge/{device}/ota/chunk/...`. The depot signs nothing, decides nothing and keeps nothing: it may be stopped and started
anywhere, and several may run. Guarantee: only bytes of the files that were named are sent. Weak point: a request for an
unknown digest is only counted, since another depot may have it.
"""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_line import CONNECTED, BrokerLine, Login

MOST_BYTES = 1024 * 1024  # of one chunk; a device asks for far less
TRANSFER = "depot"  # how transfers of a desired state are named; those of `flash` have a sender of their own
_LOOK_S = 1.0


class Depot:
    """Files by their digest.

    Args:
        paths: bundles, or folders whose `.onnx` files are meant.

    Raises:
        CommandError: a file cannot be read, or there is none.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.files: dict[str, Path] = {}
        self.unknown = 0
        self.sent = 0
        for path in paths:
            for file in sorted(path.glob("*.onnx")) if path.is_dir() else [path]:
                try:
                    self.files[hashlib.sha256(file.read_bytes()).hexdigest()] = file
                except OSError as error:
                    raise CommandError(f"{file}: cannot be read: {error.strerror}") from error
        if not self.files:
            raise CommandError("expected bundles to serve, found none: name .onnx files, or a folder of them")

    def chunk(self, want: dict[str, Any]) -> bytes | None:
        """The bytes that a device asks for; None where they are not here."""
        transfer, digest = want.get("transfer"), want.get("sha256")
        offset, count = want.get("offset"), want.get("bytes")
        if not isinstance(transfer, str) or not transfer.startswith(TRANSFER) or not isinstance(digest, str):
            return None
        if not isinstance(offset, int) or not isinstance(count, int) or offset < 0 or not 0 < count <= MOST_BYTES:
            return None
        path = self.files.get(digest)
        if path is None:
            self.unknown += 1
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
            RefusedError: it does not let us listen or publish.
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
                except (msgspec.MsgspecError, ValueError):
                    continue  # no document of ours
                chunk = self.chunk(want)
                if chunk is None:
                    continue
                device = heard.topic.partition("/")[0]
                if want["offset"] == 0 and device not in begun:
                    report(f"{device}: {self.files[want['sha256']].name}")
                    begun.add(device)
                self.sent += 1
                line.publish(f"{device}/ota/chunk/{want['transfer']}/{want['offset']}", chunk)
