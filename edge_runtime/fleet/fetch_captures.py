"""The captures of a device -> a folder of this machine, over ssh: resumed where an earlier try ended.

The device's own runtime lists its files and sends the missing ones (`capture/sending.py`). Files are kept in
`DIR/DEVICE/`, also after the device has removed them. Guarantee: after a broken connection the file is cut behind its
last whole capture, and the next try continues there; files of another card never replace others, since their names
differ. A device that sends other data than captures is refused.
"""

import contextlib
import hashlib
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import msgspec

from edge_runtime.capture.entries import MAGIC, PATTERN, Captured, read
from edge_runtime.capture.sending import FileHead, HaveList
from edge_runtime.errors import CommandError
from edge_runtime.fleet.errors import AwayError
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.rollout import Outcome, Watcher
from edge_runtime.fleet.ssh import (
    CHUNK_BYTES,
    RETRY_SECONDS,
    Collected,
    RemoteResult,
    UnreachableError,
    as_account,
    raise_if_unreachable,
    repeat,
    script,
    start,
)

MOST_HEAD_BYTES = 4096
MOST_FILE_BYTES = 1 << 34
_USAGE = 2
_NAME = re.compile(r"part-[0-9]{1,12}(-[0-9a-f]{1,32})?\.captures")

# The state folder is the one that the unit gives to the service.
_ASK = """runtime=$1; service=$2; config=$3
STATE_DIRECTORY="/var/lib/edge-runtime/$service" exec "$runtime" captures --here "$config"
"""


def fetch(
    target: FleetDevice,
    watcher: Watcher,
    folder: Path,
    config: str | None = None,
    *,
    pause: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Fetch the new captures of one device.

    Args:
        target: the device.
        watcher: shows the progress.
        folder: takes a folder of the device's name.
        config: the device file there; that of the service when left out.
        pause: waits before another try.

    Raises:
        UnreachableError: the connection broke `TRIES` times.
        CommandError: the device cannot list its captures, or this machine cannot write them.
    """
    own = folder / target.name
    before = _windows(own)

    def fetch_once() -> tuple[int, int]:
        watcher.step(target.name, "asking for captures")
        return _fetch_once(target, watcher, own, config or f"/etc/edge-runtime/{target.service}.toml")

    files, size = repeat(fetch_once, {AwayError: RETRY_SECONDS}, pause)
    new = _windows(own) - before
    details: dict[str, object] = {"windows": new, "bytes": size, "folder": str(own)}
    if not files:
        return Outcome(target.name, "unchanged", "nothing new", details=details)
    return Outcome(target.name, "done", f"{new} captures, {size} bytes", details=details)


def _fetch_once(target: FleetDevice, watcher: Watcher, own: Path, config: str) -> tuple[int, int]:
    """The numbers of fetched files and bytes."""
    words = as_account(target.account, script(_ASK, target.runtime, target.service, config))
    have = HaveList(have=_held(own))
    with start(target, words) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        err = Collected(process.stderr)
        with contextlib.suppress(OSError):  # the other end is gone; its stderr says why
            process.stdin.write(msgspec.json.encode(have))
            process.stdin.close()
        try:
            files, size, ended = _take(process.stdout, own, lambda done: watcher.bytes(target.name, done, done))
        except OSError as error:
            raise CommandError(f"{own}: cannot be written: {error.strerror}") from error
        try:
            code = process.wait(target.stall_timeout * 2 + 10)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError("the device does not end the transfer") from error
        answer = RemoteResult(code, "", err.text())
    raise_if_unreachable(target, answer)
    if code == _USAGE:
        raise CommandError("its runtime is too old to send captures: provision the device first")
    if code != 0:
        raise CommandError(answer.reason)
    if not ended:
        raise UnreachableError("the connection broke")
    return files, size


def _held(own: Path) -> dict[str, tuple[int, str]]:
    """The files that are here already, cut behind their last whole capture."""
    held = {}
    for path in own.glob(PATTERN):
        data = path.read_bytes()
        whole = read(data).whole
        if whole < len(data):
            os.truncate(path, whole)
        if whole:
            held[path.name] = (whole, hashlib.sha256(data[:whole]).hexdigest())
    return held


def _take(stream: IO[bytes], own: Path, progress: Callable[[int], None]) -> tuple[int, int, bool]:
    """Files, bytes, and whether the device has sent its end mark.

    Raises:
        CommandError: the device sends other data.
        OSError: this machine cannot write it.
    """
    files = size = 0
    while line := stream.readline(MOST_HEAD_BYTES):
        if not line.endswith(b"\n") and len(line) < MOST_HEAD_BYTES:
            break  # cut off
        try:
            head = msgspec.json.decode(line, type=FileHead)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise CommandError(f"expected captures from the device, found {line[:60]!r}") from error
        if head.end:
            return files, size, True
        if not _NAME.fullmatch(head.file) or head.offset < 0 or not 0 < head.bytes <= MOST_FILE_BYTES:
            raise CommandError(f"expected captures from the device, found {line[:60]!r}")
        own.mkdir(parents=True, exist_ok=True)
        done = _write(stream, own / head.file, head, lambda more, size=size: progress(size + more))  # type: ignore[misc]
        files += 1
        size += done
        if done < head.bytes:
            break
    return files, size, False


def _write(stream: IO[bytes], path: Path, head: FileHead, progress: Callable[[int], None]) -> int:
    """Append the received bytes to a file; return their number."""
    if path.is_symlink():
        raise CommandError(f"{path}: expected a file, found a link")
    with path.open("r+b" if path.exists() else "x+b") as file:
        if head.offset not in (0, file.seek(0, os.SEEK_END)):
            raise CommandError(f"expected the device to go on at {file.tell()} of {head.file}, found {head.offset}")
        file.seek(head.offset)
        file.truncate()
        left = head.bytes
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            if left == head.bytes and not head.offset and chunk[: len(MAGIC)] != MAGIC[: len(chunk)]:
                raise CommandError(f"expected captures from the device, found {chunk[:8]!r}")
            file.write(chunk)
            left -= len(chunk)
            progress(head.bytes - left)
        file.flush()
        os.fsync(file.fileno())
    return head.bytes - left


def _windows(own: Path) -> int:
    """The number of captures in a folder."""
    return sum(isinstance(entry, Captured) for path in own.glob(PATTERN) for entry in read(path.read_bytes()).entries)
