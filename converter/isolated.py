"""Commands that read a stranger's file, in a child of limited means: `build`, `compare` and `inspect`.

The parent checks the command line, makes a folder for the child, starts it, hands on what it says, and puts what it
made into place: a bundle is signed and renamed here, so that the child needs no key and may write nowhere else. The
child puts up its walls (`isolation.py`) before a framework is imported.

Guarantee: a model file's code, `--trust` or not, reads only the inputs of the command and the system's libraries,
writes only into its own folder, which is removed, and is ended with the command, what it has started included. It has
no terminal: what it says comes through pipes, and reaches the terminal as printable text. What it made is taken only
where it is a regular file, and no link, in the folder. Weak points: those of `isolation.py`; what a wall cannot be had
for is said in the first line of the output.
"""

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from converter import signing
from converter.commands.build import say
from converter.isolation import Walls, enter, system_folders
from edge_runtime.errors import CommandError

_INPUTS = ("model", "spec", "data", "calibration", "evaluation", "bundle", "a", "b")
_OUTPUTS = ("output", "report")
_WALLS = "EDGE_CONVERT_WALLS"  # how the parent tells the child what it may do
_WALL_SECONDS = 6 * 3600.0
_MEMORY_SHARE = 0.9
_FOREIGN = "stderr.txt"
_LONGEST_LINE = 64 * 1024
_MOST_AFTER_END = 1 << 20  # what is still in the pipes when the child has ended
_MOST_FOREIGN_BYTES = 64 * 1024


def run(command: str, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run a command in a child, and put its files into place.

    Args:
        command: one of `cli.ISOLATED`.
        options: its command line, parsed.
        arguments: the same, as it came.

    Raises:
        CommandError: the child ran out of time or was killed, or what it made cannot be put into place.
    """
    with tempfile.TemporaryDirectory(prefix="edge-convert-") as name:
        folder = Path(name).resolve()
        made = {key: folder / key / path.name for key in _OUTPUTS if (path := getattr(options, key, None)) is not None}
        for path in made.values():
            path.parent.mkdir()
        _lend_figures(options, made)
        child = _start(command, _rewritten(options, arguments, made), options, folder)
        held = _hand_on(child, options, made)
        code = _ended(child, command, folder / _FOREIGN)
        if code == 0 or "report" in made:
            _put_into_place(options, made, code, folder)
        for line in held:
            say(line)
        return code


def _rewritten(options: argparse.Namespace, arguments: Sequence[str], made: dict[str, Path]) -> list[str]:
    """The command line of the child: later words win, and it has no key to sign with."""
    words = list(arguments)
    key = getattr(options, "sign", None)
    if key is not None:
        for place, word in enumerate(words):
            if word == "--sign":
                del words[place : place + 2]
                break
            if word.startswith("--sign="):
                del words[place]
                break
    names = {"output": "-o", "report": "--report"}
    return [*words, *(word for name, path in made.items() for word in (names[name], str(path)))]


def _start(command: str, words: list[str], options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    inputs = [value for name in _INPUTS if isinstance(value := getattr(options, name, None), Path)]
    beside = [
        *map(str, inputs),
        *_beside(inputs),
        *sys.path,
        sys.prefix,
        sys.base_prefix,
        str(Path(__file__).parents[1]),
    ]
    if inputs and not inputs[0].exists():
        beside.append(str(Path.cwd()))  # `module:function` comes from here
    walls = {
        "readable": system_folders(beside),
        "folder": str(folder),
        "memory_bytes": int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "cpu_s": int(_WALL_SECONDS * (os.cpu_count() or 1)),
    }
    environment = {
        **os.environ,
        _WALLS: json.dumps(walls),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "PYTHONUNBUFFERED": "1",
        "JOBLIB_MULTIPROCESSING": "0",  # its locks want a shared folder of the system
    }
    # A session of its own: Ctrl-C on a terminal then reaches the parent alone, which hands it on once, and the child
    # cannot type into that terminal.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "converter.isolated", command, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip


def _beside(inputs: list[Path]) -> list[str]:
    """Files that belong to an input: a device's figures, and the variables of a SavedModel given by its program."""
    found = [str(path.with_name(f"{path.stem}.measured.json")) for path in inputs]
    return found + [str(path.parent) for path in inputs if path.name == "saved_model.pb"]


def _lend_figures(options: argparse.Namespace, made: dict[str, Path]) -> None:
    """What a device measured of the bundle that stood here before, for the child to compare with."""
    if "output" in made:
        figures = options.output.with_name(f"{options.output.stem}.measured.json")
        with contextlib.suppress(OSError):
            shutil.copyfile(figures, made["output"].with_name(figures.name))


def _hand_on(child: subprocess.Popen[bytes], options: argparse.Namespace, made: dict[str, Path]) -> list[str]:
    """Print what the child says, with our names of the files; lines about files wait until these are in place."""
    names = {str(path): str(getattr(options, key)) for key, path in made.items()}
    held: list[str] = []
    timer = threading.Timer(_WALL_SECONDS, child.kill)
    timer.daemon = True
    timer.start()
    before = {number: signal.signal(number, lambda sent, _: child.send_signal(sent)) for number in _SIGNALS}
    try:
        for is_error, line in _lines(child):
            text = line
            about = [path for path in names if path in text]
            for path in about:
                text = text.replace(path, names[path])
            if is_error:
                sys.stderr.write(f"{text}\n")
                sys.stderr.flush()
            elif about:
                held.append(text)
            else:
                say(text)
    except BaseException:
        child.kill()
        raise
    finally:
        _end(child)
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    return held


def _lines(child: subprocess.Popen[bytes]) -> Iterator[tuple[bool, str]]:
    """What the child prints until it ends, line by line, and whether it is an error.

    Processes that it leaves behind may hold the pipes open: nothing is waited for after its end.
    """
    assert child.stdout is not None
    assert child.stderr is not None
    pending = {child.stdout.fileno(): bytearray(), child.stderr.fileno(): bytearray()}
    poller = select.poll()
    for pipe in pending:
        os.set_blocking(pipe, False)
        poller.register(pipe, select.POLLIN)
    end = os.pidfd_open(child.pid)
    poller.register(end, select.POLLIN)
    opened, has_ended, left = set(pending), False, _MOST_AFTER_END
    try:
        while opened and left > 0:
            ready = {number for number, _ in poller.poll(0 if has_ended else None)}
            if has_ended and not ready & opened:
                break
            if end in ready and not has_ended:
                has_ended = True
                poller.unregister(end)
            for pipe in sorted(ready & opened):
                data = os.read(pipe, _LONGEST_LINE)
                left -= len(data) if has_ended else 0
                if not data:
                    opened.remove(pipe)
                    poller.unregister(pipe)
                for line in _cut(pending[pipe], data):
                    yield pipe == child.stderr.fileno(), line
        for pipe, rest in pending.items():
            if rest:
                yield pipe == child.stderr.fileno(), _printable(bytes(rest))
    finally:
        os.close(end)
        child.stdout.close()
        child.stderr.close()


def _cut(pending: bytearray, data: bytes) -> list[str]:
    """The whole lines of what has come so far; one that never ends is cut."""
    pending += data
    *lines, rest = bytes(pending).split(b"\n")
    if len(rest) >= _LONGEST_LINE:
        lines, rest = [*lines, rest], b""
    pending[:] = rest
    return [_printable(line) for line in lines]


def _printable(line: bytes) -> str:
    """A line without what a terminal would obey."""
    text = line.decode(errors="replace")
    return "".join(each if each.isprintable() or each == "\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for the child, and end what it has left behind in its process group."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its number stays taken until it is waited for
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def _ended(child: subprocess.Popen[bytes], command: str, foreign: Path) -> int:
    code = child.returncode
    if code >= 0:
        return code
    if -code in (signal.SIGINT, signal.SIGTERM):
        return 128 - code
    name = signal.Signals(-code).name
    if -code in (signal.SIGKILL, signal.SIGXCPU):
        raise CommandError(
            f"edge-convert {command}: the process that reads the model was killed ({name}), out of memory or time: use "
            "a smaller model or fewer rows, or a machine with more memory; nothing was written"
        )
    said = _last_words(foreign)
    last = f": {said[-1].strip()[:200]}" if said else ""
    raise CommandError(
        f"edge-convert {command}: the process that reads the model crashed ({name}{last}), which a file that is "
        "damaged or made for that can cause: nothing was written"
    )


def _last_words(foreign: Path) -> list[str]:
    """The lines that frameworks wrote last, from a file that the child could replace by anything."""
    file = _made(foreign, foreign.parent)
    if file is None:
        return []
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_FOREIGN_BYTES))
        return [_printable(line) for line in file.read(_MOST_FOREIGN_BYTES).strip().splitlines()]


def _made(path: Path, folder: Path) -> BinaryIO | None:
    """What the child made, opened; None where there is no regular file of that name, by any link or otherwise.

    The child may have put a link, or a folder that is one, in its place: through it we would read what it may not.
    """
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    *folders, name = path.relative_to(folder).parts
    try:
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            os.close(place)
            place = inner
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    finally:
        os.close(place)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return None
    return os.fdopen(handle, "rb")


def _put_into_place(options: argparse.Namespace, made: dict[str, Path], code: int, folder: Path) -> None:
    for key, path in made.items():
        target: Path = getattr(options, key)
        if key == "output" and code:
            continue
        source = _made(path, folder)
        if source is None:
            continue
        sign = getattr(options, "sign", None) if key == "output" else None
        try:
            with source:
                _place(source, target, sign, is_bundle=key == "output")
        except OSError as error:
            raise CommandError(f"{target}: cannot be written: {error.strerror}") from error


def _place(source: BinaryIO, target: Path, key: Path | None, *, is_bundle: bool) -> None:
    """A file under its name at once and whole, its signature before it."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    part, signature = Path(name), target.with_name(target.name + ".sig")
    part_signature = part.with_name(part.name + ".sig")
    try:
        with os.fdopen(handle, "wb") as file:
            shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        if key is not None:
            signing.sign(part, key)
            part_signature.replace(signature)
        part.replace(target)
        if is_bundle and key is None:
            signature.unlink(missing_ok=True)  # it belonged to the file that was here before
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        for left in (part, part_signature):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    if key is not None:
        say(f"wrote {signature}")


def main() -> int:
    """In the child: put up the walls, then run the command.

    Whatever frameworks write to standard error goes to a file; ours alone reaches the terminal.
    """
    walls: dict[str, Any] = json.loads(os.environ.pop(_WALLS))
    missing = enter(Walls(tuple(walls["readable"]), walls["folder"], walls["memory_bytes"], walls["cpu_s"]))
    if missing and sys.argv[1] == "build":
        say(f"this system does not keep the model's loader from {' or '.join(missing)}")
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(walls["folder"], _FOREIGN).open("w", buffering=1, encoding="utf-8", errors="replace") as foreign:
        os.dup2(foreign.fileno(), 2)
        sys.stderr = foreign
        from converter.cli import main as command_line  # noqa: PLC0415 - behind the walls

        try:
            return command_line(sys.argv[1:], errors=ours)
        except Exception as error:  # noqa: BLE001 - whatever it is, its user reads one sentence
            print(_own_fault(error), file=ours)
            return 1


def _own_fault(error: Exception) -> str:
    """A sentence about an exception that nothing has expected, with the innermost place of ours."""
    root = str(Path(__file__).parent)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    where = f"{Path(places[-1].filename).name}, line {places[-1].lineno}" if places else "before the first step"
    text = " ".join(str(error).split())[:200]
    return (
        f"edge-convert {sys.argv[1]}: stopped by a fault of its own ({type(error).__name__}: {text}; in {where}): "
        "nothing was written: please report it with the command and, if you may, the model"
    )


def _leave(code: int) -> NoReturn:
    """End without Python's farewell, in which threads of a framework that still run abort the process now and then."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
