"""Faults of the disk and of the process, put in from outside with strace, and the oracle that judges what is left.

The program under fire is `tests/faults/core/outbox_workload.py`. Every fault must prove that it fired: a child that
was to be killed has to have died of SIGKILL, an error that was to be met has to stand in strace's own log.
"""

import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.rows import OutboxFileError
from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[2]
WORKLOAD = ROOT / "tests" / "faults" / "core" / "outbox_workload.py"
STRACE = shutil.which("strace")
LONG = os.environ.get("EDGE_TORTURE") == "long"
SECTOR = 512
# What SQLite calls on its files; `openat` only for the paths of the outbox, since Python opens files as well.
CALLS = ("pwrite64", "fdatasync", "pread64", "ftruncate", "unlink", "fcntl", "fchown", "openat")


def report(text: str) -> None:
    """A figure for `docs/reliability.md`; shown by `pytest -s` or `-rP`."""
    sys.stdout.write(f"FIGURE {text}\n")


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder in memory if possible: these faults are in the order of calls and their images, and need no card."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="outbox-", dir=memory if memory.is_dir() else None))
    yield path
    shutil.rmtree(path)


def run_workload(folder: Path, seeds: list[int], *words: str, inject: str = "", log: Path | None = None) -> list[int]:
    """How the children ended: 0, or minus the signal. `inject` is a rule of `strace -e inject`."""
    command = [sys.executable, str(WORKLOAD), str(folder), *map(str, seeds), *words]
    if inject:
        assert STRACE is not None
        call = inject.partition(":")[0]
        traced = [STRACE, "-f", "-qq", "-s", "0", "-e", f"trace={call}", "-e", f"inject={inject}"]
        if call == "openat":
            for seed in seeds:
                for suffix in ("", "-wal", "-journal", "-shm"):
                    traced += ["-P", str(folder / str(seed) / f"outbox.db{suffix}")]
        command = [*traced, "-o", str(log or os.devnull), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=patient(120))
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    found = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert len(found) == len(seeds), f"the parent ended early: {done.stdout} {done.stderr[-2000:]}"
    return found


def count_calls(folder: Path, seeds: list[int]) -> dict[str, range]:
    """The numbers of each call that every child makes and its parent does not, in a run without faults."""
    numbers: dict[str, range] = {}
    log = folder / "count.strace"
    for call in CALLS:
        shutil.rmtree(folder / "count", ignore_errors=True)
        run_workload(folder / "count", seeds, inject=f"{call}:delay_exit=0:when=65535", log=log)
        lines = log.read_text(errors="replace").splitlines()
        made = Counter(line.split()[0] for line in lines if f" {call}(" in line)
        parent = min({line.split()[0] for line in lines}, key=int)
        by_parent = made.pop(parent, 0) if len(made) > len(seeds) or "SIGCHLD" in log.read_text() else 0
        least = min(made.values()) if len(made) == len(seeds) else 0
        numbers[call] = range(by_parent + 1, least + 1)
    shutil.rmtree(folder / "count", ignore_errors=True)
    return numbers


@dataclass
class Said:
    """What a child wrote down before it ended."""

    kept: set[int] = field(default_factory=set)
    going: set[int] = field(default_factory=set)
    errors: int = 0

    def take(self, line: str) -> None:
        """One line, without its end."""
        word, _, rest = line.partition(" ")
        if word == "kept":
            self.kept.update(map(int, rest.split()))
        elif word == "going":
            self.going.update(map(int, rest.split()))
        elif word == "error":
            self.errors += 1


def read_said(folder: Path) -> Said:
    """All lines of a child's folder."""
    answered = Said()
    path = folder / "printed"
    if path.exists():
        for line in path.read_text().splitlines():
            answered.take(line)
    return answered


def judge(folder: Path, answered: Said) -> list[str]:
    """What is wrong with the file that was left; nothing is. The shipping code opens it."""
    problems = []
    store = OutboxFile(folder / "outbox.db", 1 << 30, 1e12)
    try:
        opened = store.open()
        rows = store.fetch(0, 1_000_000)
    except OutboxFileError as error:
        return [f"it does not open: {error}"]
    finally:
        store.close()
    if opened.damaged_file is not None:
        problems.append("it was found damaged")
    numbers = []
    for row in rows:
        if not row.is_sound:
            problems.append(f"row {row.id} is not what was written")
        else:
            numbers.append(int(json.loads(row.payload)["n"]))
    if numbers != sorted(set(numbers)):
        problems.append("the rows are not in their order")
    missing = answered.kept - answered.going - set(numbers)
    if missing:
        problems.append(f"{len(missing)} acknowledged rows are lost, such as {min(missing)}")
    with closing(sqlite3.connect(folder / "outbox.db")) as connection:
        if connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            problems.append("the integrity check fails")
    return problems


# --- power cuts ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Act:
    """One call of the recorded run: `write`, `truncate`, `sync`, `create`, `unlink`, or `say`."""

    kind: str
    file: str = ""
    offset: int = 0
    data: bytes = b""


_LINE = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")
_ESCAPED = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


def record(folder: Path, seed: int, *words: str) -> list[Act]:
    """Run one child under strace and return what it did to its files, in order."""
    lines = _trace(folder / "record.strace", [str(WORKLOAD), str(folder), str(seed), *words])
    child = lines[-1].split()[0] if lines[-1].split()[0] != lines[0].split()[0] else ""
    children = Counter(line.split()[0] for line in lines)
    parent = lines[0].split()[0]
    child = max((pid for pid in children if pid != parent), key=lambda pid: children[pid], default=child)
    return _acts([line for line in lines if line.startswith(f"{child} ")], folder / str(seed))


def record_takeover(path: Path) -> list[Act]:
    """What stands on the disk, all of it synced, and then what a new process does to this outbox file."""
    acts = []
    for file in (path, path.with_name(path.name + "-wal")):
        acts += [Act("create", file.name), Act("write", file.name, 0, file.read_bytes()), Act("sync", file.name)]
    program = (
        "import pathlib, sys; from edge_runtime.delivery.outbox_file import OutboxFile; "
        "store = OutboxFile(pathlib.Path(sys.argv[1]), 1 << 30, 1e12); store.open(); store.close()"
    )
    return acts + _acts(_trace(path.with_name("takeover.strace"), ["-c", program, str(path)]), path.parent)


def _trace(log: Path, arguments: list[str]) -> list[str]:
    assert STRACE is not None
    calls = "openat,pwrite64,write,fdatasync,fsync,ftruncate,unlink,close"
    command = [STRACE, "-f", "-qq", "-xx", "-s", "200000", "-e", f"trace={calls}", "-e", "signal=none", "-o", str(log)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run(
        [*command, sys.executable, *arguments], env=environment, check=True, capture_output=True, timeout=patient(120)
    )
    return log.read_text().splitlines()


def _acts(lines: list[str], folder: Path) -> list[Act]:
    acts: list[Act] = []
    files: dict[str, str] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            continue
        call, arguments, result = match[1], match[2], int(match[3])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _ESCAPED.findall(arguments)]
        if result < 0:
            continue
        first = arguments.partition(",")[0]
        if call == "openat":
            path = Path(os.fsdecode(texts[0]))
            name = path.name if path.parent == folder else "folder" if path == folder else ""
            files[str(result)] = name
            if "O_CREAT" in arguments and name.startswith("outbox"):
                acts.append(Act("create", name))
        elif call == "close":
            files.pop(first, None)
        elif call == "unlink":
            acts.append(Act("unlink", Path(os.fsdecode(texts[0])).name))
        elif files.get(first, "").startswith("outbox") and not files[first].endswith("-shm"):
            name = files[first]
            last = arguments.rpartition(",")[2].strip()
            if call == "pwrite64":
                acts.append(Act("write", name, int(last), texts[0][:result]))
            elif call == "ftruncate":
                acts.append(Act("truncate", name, int(last)))
            elif call in {"fdatasync", "fsync"}:
                acts.append(Act("sync", name))
        elif files.get(first) == "folder" and call in {"fdatasync", "fsync"}:
            acts.append(Act("sync", "folder"))
        elif files.get(first) == "printed" and call == "write":
            acts.append(Act("say", data=texts[0]))
    return acts


def cut(acts: list[Act], at: int, rng: random.Random, target: Path) -> Said:
    """Make the folder that a power cut after `at` calls leaves, and return what had been promised by then.

    What was synced is there. Of what was written since, each sector of 512 bytes is there or not, by itself, as a
    card that reorders and tears would leave it. Names made and removed are on the disk with the next sync of any
    file, as in the file systems of these devices, and before that they are there or not.
    """
    durable: dict[str, bytearray] = {}
    pending: dict[str, list[Act]] = {}
    names: list[Act] = []
    answered = Said()
    for act in acts[:at]:
        if act.kind == "say":
            for line in act.data.decode().splitlines():
                answered.take(line)
        elif act.kind in {"create", "unlink"}:
            names.append(act)
            if act.kind == "create":
                durable.setdefault(act.file, bytearray())
                pending.setdefault(act.file, [])
        elif act.kind == "sync":
            for name in names:
                if name.kind == "unlink":
                    _forget(name.file, names, durable, pending)
            names.clear()
            for change in pending.get(act.file, []):
                _apply(durable[act.file], change)
            pending[act.file] = []
        else:
            pending[act.file].append(act)
    mood = rng.choice(["none", "all", "some", "few", "prefix"])
    for file, changes in pending.items():
        image = durable.get(file)
        if image is None:
            continue
        upto = rng.randint(0, len(changes)) if mood == "prefix" else len(changes)
        for change in changes[:upto]:
            _apply_torn(image, change, mood, rng)
    for name in names:
        if name.kind == "unlink" and rng.random() < 0.5:
            durable.pop(name.file, None)
    target.mkdir(parents=True)
    for file, image in durable.items():
        if file != "folder":
            (target / file).write_bytes(image)
    return answered


def _forget(file: str, names: list[Act], durable: dict[str, bytearray], pending: dict[str, list[Act]]) -> None:
    last = [name for name in names if name.file == file][-1]
    if last.kind == "unlink":  # and not made anew since
        durable.pop(file, None)
        pending.pop(file, None)


def _apply(image: bytearray, change: Act) -> None:
    if change.kind == "truncate":
        if change.offset <= len(image):
            del image[change.offset :]
        else:
            image.extend(bytes(change.offset - len(image)))
        return
    if len(image) < change.offset:
        image.extend(bytes(change.offset - len(image)))
    image[change.offset : change.offset + len(change.data)] = change.data


def _apply_torn(image: bytearray, change: Act, mood: str, rng: random.Random) -> None:
    share = {"none": 0.0, "all": 1.0, "some": 0.5, "few": 0.1, "prefix": 1.0}[mood]
    if change.kind == "truncate":
        if rng.random() < share:
            _apply(image, change)
        return
    at = 0
    while at < len(change.data):
        size = min(SECTOR - (change.offset + at) % SECTOR, len(change.data) - at)
        if rng.random() < share:
            _apply(image, Act("write", change.file, change.offset + at, change.data[at : at + size]))
        at += size
