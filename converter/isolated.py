"""Commands that read files of unknown origin run in a restricted child process: `build`, `compare` and `inspect`.

The parent checks the command line, makes a folder for the child, starts it, forwards its output, and moves its files
into place: the parent signs and renames a bundle, so that the child needs no key and no other writable folder. The
child restricts itself (`isolation.py`) before a framework is imported.

Guarantee: a model file's code, with or without `--trust`, reads only the inputs of the command and the system's
libraries, writes only into its own folder, which is removed, and ends with the command, together with its own children.
It has no terminal: its output comes through pipes and reaches the terminal as printable text. Only a regular file in
the folder is taken from it, never a link. Weak points: those of `isolation.py`; the first line of the output names each
restriction that the system does not offer.
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
from converter.isolation import Restrictions, enter, system_folders
from edge_runtime.errors import CommandError

_INPUTS = ("model", "spec", "data", "calibration", "evaluation", "bundle", "a", "b")
_OUTPUTS = ("output", "report")
_RESTRICTIONS = "EDGE_CONVERT_RESTRICTIONS"  # the variable that hands the restrictions to the child
_WALL_SECONDS = 6 * 3600.0
_MEMORY_SHARE = 0.9
_FOREIGN = "stderr.txt"
_LONGEST_LINE = 64 * 1024
_MOST_AFTER_END = 1 << 20  # for the rest of the pipes after the child's end
_MOST_FOREIGN_BYTES = 64 * 1024


def run(command: str, options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Run a command in a child, and move its files into place.

    Args:
        command: one of `cli.ISOLATED`.
        options: its command line, parsed.
        arguments: the same, unparsed.

    Raises:
        CommandError: the child ran out of time or was killed, or its files cannot be moved into place.
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
    """The command line of the child, without the signing key: later options override earlier ones."""
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
    restrictions = {
        "readable": system_folders(beside),
        "folder": str(folder),
        "memory_bytes": int(_MEMORY_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "cpu_s": int(_WALL_SECONDS * (os.cpu_count() or 1)),
    }
    environment = {
        **os.environ,
        _RESTRICTIONS: json.dumps(restrictions),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
        "PYTHONUNBUFFERED": "1",
        "JOBLIB_MULTIPROCESSING": "0",  # its locks want a shared folder of the system
    }
    # A session of its own: Ctrl-C then reaches only the parent, which forwards it once, and the child cannot write
    # input to that terminal.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "converter.isolated", command, *words],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip


def _beside(inputs: list[Path]) -> list[str]:
    """Files beside an input: a device's measurements, and the variables of a SavedModel named by its program."""
    found = [str(path.with_name(f"{path.stem}.measured.json")) for path in inputs]
    return found + [str(path.parent) for path in inputs if path.name == "saved_model.pb"]


def _lend_figures(options: argparse.Namespace, made: dict[str, Path]) -> None:
    """The measurements of a device for the bundle that the command replaces, for the child's comparison."""
    if "output" in made:
        figures = options.output.with_name(f"{options.output.stem}.measured.json")
        with contextlib.suppress(OSError):
            shutil.copyfile(figures, made["output"].with_name(figures.name))


def _hand_on(child: subprocess.Popen[bytes], options: argparse.Namespace, made: dict[str, Path]) -> list[str]:
    """Print the child's output with the parent's file names; lines about files wait until these are in place."""
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
    """The child's output until it ends, line by line, and whether a line is an error.

    Processes that it leaves behind may hold the pipes open, so reading stops at its end.
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
    """The complete lines of the output so far; an endless line is cut."""
    pending += data
    *lines, rest = bytes(pending).split(b"\n")
    if len(rest) >= _LONGEST_LINE:
        lines, rest = [*lines, rest], b""
    pending[:] = rest
    return [_printable(line) for line in lines]


def _printable(line: bytes) -> str:
    """A line without terminal control characters."""
    text = line.decode(errors="replace")
    return "".join(each if each.isprintable() or each == "\t" else "\N{REPLACEMENT CHARACTER}" for each in text)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for the child, and kill the rest of its process group."""
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # its process id stays reserved until the wait
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
    last_lines = _last_words(foreign)
    last = f": {last_lines[-1].strip()[:200]}" if last_lines else ""
    raise CommandError(
        f"edge-convert {command}: the process that reads the model crashed ({name}{last}), which a file that is "
        "damaged or made for that can cause: nothing was written"
    )


def _last_words(foreign: Path) -> list[str]:
    """The last lines that frameworks wrote, from a file that the child may have replaced by a link or a pipe."""
    file = _made(foreign, foreign.parent)
    if file is None:
        return []
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_FOREIGN_BYTES))
        return [_printable(line) for line in file.read(_MOST_FOREIGN_BYTES).strip().splitlines()]


def _made(path: Path, folder: Path) -> BinaryIO | None:
    """The child's file, opened; None where there is no regular file of that name.

    A link in its place, or a linked folder, would make the parent read files that the child may not read.
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
    """Move a file into place atomically, after its signature."""
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
    """In the child: apply the restrictions, then run the command.

    The standard error of frameworks goes to a file; only our own messages reach the terminal.
    """
    given: dict[str, Any] = json.loads(os.environ.pop(_RESTRICTIONS))
    missing = enter(Restrictions(tuple(given["readable"]), given["folder"], given["memory_bytes"], given["cpu_s"]))
    if missing and sys.argv[1] == "build":
        say(f"this system does not keep the model's loader from {' or '.join(missing)}")
    ours = os.fdopen(os.dup(2), "w", buffering=1)
    with Path(given["folder"], _FOREIGN).open("w", buffering=1, encoding="utf-8", errors="replace") as foreign:
        os.dup2(foreign.fileno(), 2)
        sys.stderr = foreign
        from converter.cli import main as command_line  # noqa: PLC0415 - behind the restrictions

        try:
            return command_line(sys.argv[1:], errors=ours)
        except Exception as error:  # noqa: BLE001 - whatever it is, its user reads one sentence
            print(_own_fault(error), file=ours)
            return 1


def _own_fault(error: Exception) -> str:
    """A sentence about an unexpected exception, with the innermost line of our own code."""
    root = str(Path(__file__).parent)
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(root)]
    where = f"{Path(places[-1].filename).name}, line {places[-1].lineno}" if places else "before the first step"
    text = " ".join(str(error).split())[:200]
    return (
        f"edge-convert {sys.argv[1]}: stopped by a fault of its own ({type(error).__name__}: {text}; in {where}): "
        "nothing was written: please report it with the command and, if you may, the model"
    )


def _leave(code: int) -> NoReturn:
    """Exit without Python's cleanup, in which running threads of a framework sometimes abort the process."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
