"""An outbox file that release 1 of the schema wrote, as a killed process left it: with rows in the log beside it.

Forty predictions of three keys were committed five at a time, the first twenty copied into the file; then the rows 4,
8 and 40 were delivered. Kept for good: files of that release are out there.
"""

import shutil
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden" / "outbox"


def _payload(number: int) -> bytes:
    key = b"abc"[number % 3 : number % 3 + 1]
    return (
        b'{"id":"press-07/worn/%b/7/%d","seq":%d,"device":"press-07","model":"worn","key":"%b","score":0.5}'
        % (key, number, number, key)
    )  # fmt: skip


OLDER_ROWS = {number + 1: _payload(number) for number in range(40) if number + 1 not in {4, 8, 40}}


def copy_older_file(folder: Path) -> Path:
    """The file and its log, in `folder`, under the name of an outbox; one that stands there is replaced."""
    path = folder / "outbox.db"
    for beside in ("", "-wal", "-shm"):
        path.with_name(path.name + beside).unlink(missing_ok=True)
    for found in GOLDEN.glob("version-1.db*"):
        shutil.copy(found, folder / found.name.replace("version-1.db", path.name))
    return path
