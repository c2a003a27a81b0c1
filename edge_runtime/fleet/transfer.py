"""A local file -> the same file on a device: resumed where an earlier try ended, and verified by its digest.

Parts are kept on the device under the file's SHA-256, so only the same content is continued. The device needs only `sh`
and coreutils. The runtime installs the file in a separate step.
"""

import hashlib
import secrets
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.fleet.errors import BusyError
from edge_runtime.fleet.inventory import FleetDevice
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

IDLE_SECONDS = 20  # a transfer that gets no byte for so long ends itself
KEPT_FOLDERS = 4
_BUSY, _DIGEST = 75, 65

# Prints how much is there, takes the rest, and gives the file its name once the digest is right. No clock is asked.
# A part that is at work is named DIGEST.part.PID.TOKEN, and is in use for as long as that process lives. A process that
# gets no byte for IDLE_SECONDS ends itself, so that a dead connection holds nothing for long; a later try of a sender
# brings the same token and does not wait for that. A process in a dead connection may still have the file open, and
# when the link is back its last bytes come: so nothing is appended, but every byte is written to its own place. What
# comes late is the same content (the part is named by it) and changes nothing, be the file verified or not. Of the
# folders of other bundles, the newest KEPT_FOLDERS stay, and those in which a process is at work.
_RECEIVE = f"""set -eu
umask 077
dir=$1 name=$2 digest=$3 size=$4 token=${{5:-$$}}
mkdir -p "$dir"
cd "$dir"
alive() {{ owner=${{1##*.part.}}; owner=${{owner%%.*}}; [ "$owner" != "$1" ] && kill -0 "$owner" 2>/dev/null; }}
ls -1t .. | tail -n +{KEPT_FOLDERS} | while read -r other; do
  [ "$other" = "${{PWD##*/}}" ] && continue
  for at_work in "../$other"/*.part.*; do alive "$at_work" && continue 2; done
  rm -rf "../$other" 2>/dev/null || true
done
case $name in */*) mkdir -p "${{name%/*}}" ;; esac
part=$digest.part mine=$digest.part.$$.$token
if [ -f "$name" ] && [ "$(sha256sum "$name" | cut -d' ' -f1)" = "$digest" ]; then echo "$size"; exit 0; fi
for old in "$part" "$part".*; do
  [ -f "$old" ] || continue
  if [ "$old" != "$part" ] && [ "${{old##*.}}" != "$token" ] && alive "$old"; then
    echo "another transfer of this file is under way" >&2; exit {_BUSY}
  fi
  mv "$old" "$mine"
done
[ -f "$mine" ] || : > "$mine"
[ "$(stat -c %s "$mine")" -le "$size" ] || : > "$mine"
held=$(stat -c %s "$mine")
echo "$held"
trap 'mv "$mine" "$part" 2>/dev/null || true' EXIT
trap 'exit 1' HUP TERM INT PIPE
exec 3<&0
dd of="$mine" bs=64k oflag=seek_bytes seek="$held" conv=notrunc status=none <&3 &
writer=$!
exec 3<&-
watch() {{
  before=-1
  while sleep {IDLE_SECONDS}; do
    now=$(stat -c %s "$mine" 2>/dev/null) || exit 0
    [ "$now" != "$before" ] || {{ kill "$writer" 2>/dev/null; exit 0; }}
    before=$now
  done
}}
watch </dev/null >/dev/null 2>&1 &
watcher=$!
trap 'kill "$watcher" "$writer" 2>/dev/null || true; mv "$mine" "$part" 2>/dev/null || true' EXIT
wait "$writer" || exit 74
[ "$(stat -c %s "$mine")" -ge "$size" ] || exit 74
if [ "$(sha256sum "$mine" | cut -d' ' -f1)" != "$digest" ]; then
  rm -f "$mine"; echo "what arrived differs from what was sent" >&2; exit {_DIGEST}
fi
sync "$mine" 2>/dev/null || true
mv "$mine" "$name"
"""

Progress = Callable[[int, int], None]


def send(
    target: FleetDevice,
    source: Path,
    folder: str,
    name: str,
    *,
    progress: Progress,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Brings one file to `folder/name` on a device. Tries again, from where it broke, when the connection breaks.

    Raises:
        UnreachableError: the connection broke `TRIES` times.
        BusyError: another transfer of this file is under way.
        CommandError: the device cannot take the file; the text says why.
    """
    content, token = source.read_bytes(), secrets.token_hex(8)
    repeat(
        partial(_send_once, target, content, folder, name, progress=progress, token=token),
        # A transfer that is dead ends itself within `IDLE_SECONDS`.
        {UnreachableError: RETRY_SECONDS, BusyError: IDLE_SECONDS},
        pause,
    )


def _send_once(target: FleetDevice, content: bytes, folder: str, name: str, *, progress: Progress, token: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    words = as_account(target.account, script(_RECEIVE, folder, name, digest, str(len(content)), token))
    with start(target, words) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        err = Collected(process.stderr)
        held = process.stdout.readline().strip()
        sent = int(held) if held.isdigit() else len(content)
        try:
            progress(sent, len(content))
            while sent < len(content):
                sent += process.stdin.write(content[sent : sent + CHUNK_BYTES])
                process.stdin.flush()
                progress(sent, len(content))
            process.stdin.close()
        except OSError:
            pass  # the other end is gone; its stderr says why
        # ssh notices a dead link within stall_timeout; the rest is the device's own work on the file.
        try:
            code = process.wait(target.stall_timeout * 2 + 60)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError("the device does not end the transfer") from error
        answer = RemoteResult(code, "", err.text())
    raise_if_unreachable(target, answer)
    if code == _BUSY:
        raise BusyError(answer.reason)
    if code != 0:
        raise CommandError(_explain(answer, folder))


def _explain(answer: RemoteResult, folder: str) -> str:
    if "No space left" in answer.err:
        return f"no space is left on the device in {folder}"
    if "Read-only file system" in answer.err:
        return f"the device cannot write to {folder}: its file system is read-only"
    return f"the file could not be sent: {answer.reason}"
