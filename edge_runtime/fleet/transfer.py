"""A file of ours -> the same file on a device: resumed where an earlier try ended, and verified by its digest.

Parts are kept on the device under the file's SHA-256, so only the very same content is ever continued. Nothing but
`sh` and coreutils is needed there. What arrives is not yet installed: that is the runtime's own step.
"""

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from edge_runtime.errors import CommandError
from edge_runtime.fleet.inventory import Target
from edge_runtime.fleet.ssh import (
    Answer,
    Collected,
    UnreachableError,
    as_account,
    raise_if_unreachable,
    script,
    start,
)

CHUNK_BYTES = 65_536
TRIES = 3
ACTIVE_SECONDS = 5  # a part that grew this recently belongs to a transfer that is alive
_BUSY, _DIGEST = 75, 65

# Removes what was given up a week ago, says how much is there, takes the rest, and gives it its name once the digest is
# right. A part is claimed by renaming it. A transfer that hangs in a dead connection still has the file open, and when
# the link is back its last bytes come: so nothing is appended, but every byte is written to its own place. What comes
# late is the same content (the part is named by it) and changes nothing, be the file verified or not.
_RECEIVE = f"""set -eu
umask 077
dir=$1 name=$2 digest=$3 size=$4
mkdir -p "$dir"
cd "$dir"
find .. -mindepth 1 -maxdepth 1 -type d -mtime +7 -exec rm -rf {{}} + 2>/dev/null || true
part=$digest.part mine=$digest.part.$$
if [ -f "$name" ] && [ "$(sha256sum "$name" | cut -d' ' -f1)" = "$digest" ]; then echo "$size"; exit 0; fi
for old in "$part" "$part".*; do
  [ -f "$old" ] || continue
  if [ $(( $(date +%s) - $(stat -c %Y "$old") )) -lt {ACTIVE_SECONDS} ] && [ "$old" != "$part" ]; then
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
dd of="$mine" bs=64k oflag=seek_bytes seek="$held" conv=notrunc status=none
[ "$(stat -c %s "$mine")" -ge "$size" ] || exit 74
if [ "$(sha256sum "$mine" | cut -d' ' -f1)" != "$digest" ]; then
  rm -f "$mine"; echo "what arrived differs from what was sent" >&2; exit {_DIGEST}
fi
sync "$mine" 2>/dev/null || true
mv "$mine" "$name"
"""

Progress = Callable[[int, int], None]


def send(
    target: Target,
    source: Path,
    folder: str,
    name: str,
    progress: Progress,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Brings one file to `folder/name` on a device. Tries again, from where it broke, when the connection breaks.

    Raises:
        UnreachableError: the connection broke `TRIES` times.
        CommandError: the device cannot take the file; the text says why.
    """
    content = source.read_bytes()
    for attempt in range(1, TRIES + 1):
        try:
            _send_once(target, content, folder, name, progress)
        except UnreachableError:
            if attempt == TRIES:
                raise
            pause(ACTIVE_SECONDS + 1)
        else:
            return


def _send_once(target: Target, content: bytes, folder: str, name: str, progress: Progress) -> None:
    digest = hashlib.sha256(content).hexdigest()
    words = as_account(target.account, script(_RECEIVE, folder, name, digest, str(len(content))))
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
            pass  # the other end is gone; why, it says itself
        # ssh notices a dead link within stall_timeout; the rest is the device's own work on the file.
        try:
            code = process.wait(target.stall_timeout * 2 + 60)
        except subprocess.TimeoutExpired as error:
            raise UnreachableError("the device does not end the transfer") from error
        answer = Answer(code, "", err.text())
    raise_if_unreachable(target, answer)
    if code != 0:
        raise CommandError(_explain(answer, folder))


def _explain(answer: Answer, folder: str) -> str:
    if "No space left" in answer.err:
        return f"no space is left on the device in {folder}"
    if "Read-only file system" in answer.err:
        return f"the device cannot write to {folder}: its file system is read-only"
    return f"the file could not be sent: {answer.reason}"
