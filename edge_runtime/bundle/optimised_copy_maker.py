"""Makes optimised copies (`optimised_copy.py`) while the daemon runs, each in a process of lowest priority.

Guarantee: neither the loop nor the first prediction waits for a copy, and no failure affects the daemon: a full or
read-only disk, a crash of onnxruntime or too little memory is one line in the log, and the next start loads the bundle
itself. The process is fresh and no fork, with limits as in the self-test; it is the first that the kernel ends when
memory runs out. What it makes stays in its memory until the copy has given the golden answers and the same bits as the
bundle. Then one durable rename puts it beside the bundle, once for each bundle, release of onnxruntime and processor.
While one process makes the copy of a bundle, another leaves it alone.

A bundle that is to have no copy (too small to gain, `never`, signatures asked for) loses the one that it has.

Weak points: for a second or so it costs the memory of a second runtime with the model in it, three times over.
"""

import contextlib
import fcntl
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edge_runtime.bundle.golden import check_golden, golden_windows
from edge_runtime.bundle.measured import MIB
from edge_runtime.bundle.model import Model, ModelOptions, make_session, read_unchanged, session_settings
from edge_runtime.bundle.open import Bundle, one_line, open_bundle
from edge_runtime.bundle.optimised_copy import MAX_BYTES, copy_path, has_seal, open_copy, path_of, seal_of
from edge_runtime.bundle.selftest import MAPPED_BY_RUNTIME
from edge_runtime.errors import BundleError, CommandError, EdgeError
from edge_runtime.system.background import BackgroundThread
from edge_runtime.system.child import module_command, start_child, step_back
from edge_runtime.system.durable import replace_file
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

WAIT_S = 3.0  # after a start or an exchange, so that the first readings have priority
MAKE_S = 600.0
MODEL_BYTES = 1024 * MIB  # that it may map beyond the runtime itself and sixteen times the file
EXIT_KEPT, EXIT_FAILED, EXIT_BUSY = 0, 1, 3
REMOVED, NOT_WRITABLE = -1, -2  # results without a process
_SPARE_BYTES = 1 * MIB
_MAX_WHY = 500

_log = get_logger("optimised")


class CopyOutcome(NamedTuple):
    """How the process ended, or why it was not started."""

    status: int
    why: str = ""
    took_s: float = 0.0


class Copies:
    """Manages the copies of a daemon's bundles.

    Args:
        loop: the event loop, which is never blocked.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._thread = BackgroundThread("optimised", loop.call_soon_threadsafe)  # one process at a time
        self._seen: set[tuple[Path, str]] = set()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def tend(self, bundle: Bundle, *, wanted: bool) -> None:
        """Have the copy of a proven bundle made or removed a little later; on the loop."""
        about = (bundle.path, bundle.digest)
        if about not in self._seen:
            self._seen.add(about)
            self._loop.call_later(WAIT_S, lambda: self._begin(bundle, wanted=wanted))

    def end(self) -> None:
        """Abort the current work."""
        self._stopped = True
        self._thread.stop()
        child = self._child
        if child is not None:
            child.kill()

    def _begin(self, bundle: Bundle, *, wanted: bool) -> None:
        if self._stopped:
            return
        work = partial(self._make if wanted else self._remove, bundle)
        about = {"bundle": bundle.manifest.name, "copy": copy_path(bundle.path)}
        self._thread.submit(
            work, partial(self._made, about), partial(self._failed, about), what="an optimised copy", most_s=2 * MAKE_S
        )

    def _made(self, about: dict[str, object], outcome: CopyOutcome) -> None:
        if self._stopped or outcome.status == EXIT_BUSY:
            return
        if outcome.status == EXIT_KEPT:
            _log.info("optimised copy kept", extra=fields(**about, took_s=outcome.took_s))
        elif outcome.status == NOT_WRITABLE:
            _log.info("no optimised copy is kept", extra=fields(**about, why="its folder cannot be written"))
        elif outcome.status != REMOVED:
            _log.warning("no optimised copy is kept", extra=fields(**about, why=outcome.why))

    def _failed(self, about: dict[str, object], error: Exception) -> None:
        if isinstance(error, EdgeError | OSError):
            self._made(about, CopyOutcome(EXIT_FAILED, one_line(str(error))))
        else:  # a fault of this code must not end the daemon
            _log.error("no optimised copy is kept", extra=fields(**about), exc_info=error)

    # --- in a thread ------------------------------------------------------------------------------------------------

    def _remove(self, bundle: Bundle) -> CopyOutcome:
        with contextlib.suppress(OSError):  # of another program: neither removed nor read
            remove_copy(bundle.path)
        return CopyOutcome(REMOVED)

    def _make(self, bundle: Bundle) -> CopyOutcome:
        """Run the process; its exit code, and why where it failed."""
        if not os.access(bundle.path.parent, os.W_OK):  # as it should be for a bundle that others look after
            return CopyOutcome(NOT_WRITABLE)
        began = time.monotonic()
        mapped = MAPPED_BY_RUNTIME + MODEL_BYTES + 16 * bundle.size
        words = (str(bundle.path.absolute()), bundle.digest, str(mapped))
        command = module_command("edge_runtime.bundle.optimised_copy_maker", *words)
        with start_child(command, stdout=subprocess.PIPE) as child:
            self._child = child
            try:
                if self._stopped:
                    child.kill()
                output, _ = child.communicate(timeout=MAKE_S)
            except subprocess.TimeoutExpired:
                return CopyOutcome(EXIT_FAILED, f"it was not made within {MAKE_S:g} s")
            finally:
                self._child = None
                child.kill()
        if child.returncode >= 0:
            why = one_line(output.decode(errors="replace").strip()) or "no reason given"
            return CopyOutcome(child.returncode, why, round(time.monotonic() - began, 1))
        if child.returncode == -signal.SIGKILL:
            return CopyOutcome(EXIT_FAILED, "its process was killed, most likely for want of memory")
        return CopyOutcome(EXIT_FAILED, f"onnxruntime crashed ({signal.Signals(-child.returncode).name})")


# -- the child -----------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    """The child: BUNDLE DIGEST MAPPED_BYTES; 0 with a valid copy, 3 when another process makes it, 1 else."""
    path, digest, mapped = (sys.argv[1:] if argv is None else argv)[:3]
    _step_back(int(mapped))
    try:
        return make_copy(Path(path), digest)
    except Exception as error:  # noqa: BLE001 - the edge of the process: whatever it is becomes the line in the log
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
        sys.stdout.write(" ".join(words.split())[:_MAX_WHY] or type(error).__name__)
        return EXIT_FAILED


def make_copy(path: Path, digest: str) -> int:
    """Make the copy of a bundle, unless there is a valid one.

    Raises:
        BundleError: the bundle has changed, or its copy gives other answers; an existing copy is removed.
        OSError: the disk fails.
    """
    importlib.import_module("onnxruntime")  # loaded, it says its release itself, as it does in the daemon
    with _alone(path) as is_alone:
        if not is_alone:
            return EXIT_BUSY
        bundle = open_bundle(path, digest=digest)
        try:
            with open_copy(bundle) as there:
                if there is not None:
                    require_same_bits(bundle, there)
                    return EXIT_KEPT
        except EdgeError:
            remove_copy(path)
        copy = _make_good_copy(bundle)
        free = shutil.disk_usage(path.parent).free
        if free < len(copy) + _SPARE_BYTES:
            raise CommandError(f"expected room for {len(copy)} bytes and 1 MiB to spare, found {free} free")
        replace_file(copy_path(path), copy)
        return EXIT_KEPT


def _make_good_copy(bundle: Bundle) -> bytes:
    """A copy that was loaded and compared in a memory file, so that only a valid one is written to disk."""
    with os.fdopen(os.memfd_create("optimised", os.MFD_CLOEXEC), "r+b", buffering=0) as file:
        optimise(bundle, path_of(file.fileno()))
        model = file.read(MAX_BYTES + 1)
        if not model:
            raise BundleError("expected an optimised model, but onnxruntime wrote none")
        if len(model) > MAX_BYTES // 2:
            raise BundleError(f"expected at most {MAX_BYTES // 2} bytes, found more: none is kept for this model")
        seal = seal_of(bundle, model)
        file.write(seal)
        require_same_bits(bundle, path_of(file.fileno()))
    return model + seal


def remove_copy(bundle: Path) -> None:
    """Remove the copy of a bundle; a file without a seal is not ours, and stays.

    Raises:
        OSError: it cannot be read or removed.
    """
    path = copy_path(bundle)
    if has_seal(path):
        path.unlink()


def optimise(bundle: Bundle, path: str) -> None:
    """Have onnxruntime write the optimised graph of a bundle."""
    settings = session_settings(ModelOptions(), bundle.facts.int8)
    settings.optimized_model_filepath = path
    make_session(read_unchanged(bundle), settings, str(bundle.path))


def require_same_bits(bundle: Bundle, copy: str) -> None:
    """Check that a copy loads, passes the self-test and gives the same scores as its bundle.

    Raises:
        BundleError: it does not.
        ModelError: it cannot run.
    """
    golden = bundle.manifest.selftest
    shape = bundle.manifest.input.tensor_shape
    windows = [np.random.default_rng(0).standard_normal((5, *shape), np.float32), np.zeros((1, *shape), np.float32)]
    if golden is not None:
        windows.append(golden_windows(golden))
    found = []
    for path in (None, copy):
        model = Model(bundle, ModelOptions(), optimised=path)
        check_golden(model)
        answers = [model.run(each) for each in windows]
        found.append([_bits(getattr(answer, name)) for answer in answers for name in answer.__struct_fields__])
        del model
    if found[0] != found[1]:
        raise BundleError("expected the same bits as the bundle's own, found others: none is kept for this model")


def _bits(numbers: object) -> bytes:
    return b"" if numbers is None else np.asarray(numbers).tobytes()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Lock the bundle itself, so that no lock file is left; False when another process holds the lock."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(handle)


def _step_back(mapped_bytes: int) -> None:
    step_back(mapped_bytes)
    signal.setitimer(signal.ITIMER_REAL, MAKE_S + 1)  # ends this process even if the daemon is gone


if __name__ == "__main__":
    sys.exit(main())
