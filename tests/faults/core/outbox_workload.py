"""A program that uses the outbox's file hard, and writes down what it was promised. Killed and failed from outside.

`python outbox_workload.py FOLDER SEED... [--early] [--no-sync]` forks one child for each seed, one after the other;
each works in FOLDER/SEED on the file that it finds there, so that a second run is a recovery. What was promised goes
into FOLDER/SEED/printed, one `write` a line, which a SIGKILL cannot take back. The parent prints how each child ended.

`--early` promises before the commit and `--no-sync` switches the syncs off: the suite must notice both.
"""

import json
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path

from edge_runtime.delivery import outbox_file as outbox_store
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import NewRow, OutboxFileError

STEPS = 24


class Worker:
    """One child's work."""

    def __init__(self, folder: Path, seed: int, *, early: bool, no_sync: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rng = random.Random(f"{seed} {len(os.listdir(folder))}")  # noqa: PTH208
        self.early = early
        self.no_sync = no_sync
        answered = folder / "printed"
        self.number = _last_number(answered)
        self.log = os.open(answered, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self.store = OutboxFile(folder / "outbox.db", 1 << 30, 1e12)
        self.stored: dict[int, int] = {}

    def run(self) -> None:
        """All steps. A disk that stays bad ends the work, and is no failure of the program."""
        if not self.open():
            return
        for _ in range(STEPS):
            try:
                self.step()
            except OutboxFileError as error:
                self.say("error", [str(error).replace("\n", " ")])
                if not self.open():
                    return
        self.store.close()

    def open(self) -> bool:
        """Open the file, a few times if need be, and read what it holds."""
        for _ in range(4):
            try:
                self.store.open()
                connection = self.store._connection
                assert connection is not None
                connection.execute("PRAGMA wal_autocheckpoint=6")  # many checkpoints in a short run
                if self.no_sync:
                    connection.execute("PRAGMA synchronous=OFF")
                rows = self.store.fetch(0, 10_000)
            except OutboxFileError as error:
                self.say("error", [str(error).replace("\n", " ")])
                continue
            self.stored = {row.id: json.loads(row.payload)["n"] for row in rows}
            return True
        return False

    def step(self) -> None:
        """One transaction, and now and then what else happens to a file."""
        rows = []
        numbers = []
        for _ in range(self.rng.randint(0, 6)):
            self.number += 1
            numbers.append(self.number)
            fill = self.rng.randbytes(self.rng.choice([5, 100, 500, 4000])).hex()  # packs to half: some fill pages
            payload = json.dumps({"n": self.number, "fill": fill}).encode()
            rows.append(NewRow("m/a", 1, 1e9, "edge/m/a", payload))
        gone = [row_id for row_id in sorted(self.stored)[:10] if self.rng.random() < 0.15]
        self.say("going", [self.stored[row_id] for row_id in gone])
        if self.early:
            self.say("kept", numbers)
        done = self.store.commit(rows, gone)
        if not self.early:
            self.say("kept", numbers)
        for row_id in gone:
            del self.stored[row_id]
        self.stored.update(zip(done.ids, numbers, strict=True))
        if self.rng.random() < 0.15:
            self.store.close()
            self.open()
        if self.rng.random() < 0.2:
            self.store.fetch(0, 64)

    def say(self, word: str, what: Iterable[object]) -> None:
        """One line that stays, whatever happens to us."""
        os.write(self.log, f"{word} {' '.join(map(str, what))}\n".encode())


def _last_number(answered: Path) -> int:
    if not answered.exists():
        return 0
    numbers = [int(word) for line in answered.read_text().splitlines() for word in line.split() if word.isdigit()]
    return max(numbers, default=0) + 100  # what was tried and not reported must not be mistaken for something new


def main() -> None:
    """Fork the children."""
    folder, *words = sys.argv[1:]
    outbox_store.BUSY_TIMEOUT_S = 0.05  # no other process holds these files: a lock that fails was made to fail
    seeds = [int(word) for word in words if word.isdigit()]
    for seed in seeds:
        child = os.fork()
        if child == 0:
            Worker(Path(folder) / str(seed), seed, early="--early" in words, no_sync="--no-sync" in words).run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{seed} {os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
