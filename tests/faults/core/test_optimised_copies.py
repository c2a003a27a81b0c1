"""The process that makes an optimised copy, killed at every call that matters and refused by the disk at each of them.

What is left is no copy or a whole one, the bundle is as it was, and the next process makes the copy. Every fault must
prove that it fired.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.bundle.open import Bundle, open_bundle
from edge_runtime.bundle.optimised_copy import SUFFIX, copy_path, open_copy
from edge_runtime.bundle.optimised_copy_maker import EXIT_FAILED, EXIT_KEPT
from tests.support.disk_faults import ROOT, STRACE
from tests.support.operator_kinds import convolutions
from tests.support.waiting import patient

pytestmark = pytest.mark.skipif(STRACE is None, reason="strace is not installed: apt install strace")

# How a file is replaced, in this order: the new file, its bytes, their sync, its name, the sync of the folder.
STEPS = (("openat", 1), ("write", 1), ("fsync", 1), ("rename", 1), ("fsync", 2))
MAPPED_BYTES = 4 << 30


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle in a folder of its own."""
    folder = tmp_path / "bundles"
    folder.mkdir()
    return open_bundle(convolutions().save(folder / "m.onnx"))


def _make(bundle: Bundle, call: str = "", fault: str = "") -> tuple[int, str, str]:
    """Run the process, under strace where there is a fault: how it ended, what it reported, and what strace saw."""
    command = [sys.executable, "-m", "edge_runtime.bundle.optimised_copy_maker"]
    command += [str(bundle.path), bundle.digest, str(MAPPED_BYTES)]
    log = bundle.path.parent.parent / "strace"
    if fault:
        new = str(bundle.path.with_name(f".new-{bundle.path.name}{SUFFIX}"))
        only = ["-P", new, "-P", str(bundle.path.parent)] if call == "fsync" else ["-P", new]
        assert STRACE is not None
        traced = [STRACE, "-f", "-qq", "-s", "0", "-o", str(log), "-e", f"trace={call}", "-e", f"inject={call}:{fault}"]
        command = [*traced, *only, *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=patient(120))
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, done.stdout, log.read_text() if fault else ""


def _holds(bundle: Bundle) -> bool:
    """Whether there is a copy; what is there under its name is whole."""
    with open_copy(bundle) as copy:
        assert (copy is not None) == copy_path(bundle.path).exists(), "a copy that is not whole"
        return copy is not None


@pytest.mark.parametrize(("call", "number"), STEPS, ids=str)
def test_killed_anywhere_it_leaves_no_copy_or_a_whole_one(call: str, number: int, bundle: Bundle) -> None:
    """A power cut or a kill: nothing torn stands under the copy's name, and the next start has it made."""
    code, _, seen = _make(bundle, call, f"signal=SIGKILL:when={number}")
    assert code == -signal.SIGKILL, f"the fault did not fire: {seen}"
    held = _holds(bundle)
    assert call == "rename" or held == ((call, number) == ("fsync", 2)), "a kill at the rename may come on either side"
    assert open_bundle(bundle.path).digest == bundle.digest
    assert _make(bundle)[0] == EXIT_KEPT
    assert _holds(bundle)
    assert len([path for path in bundle.path.parent.iterdir() if path.suffix == SUFFIX and path.name[0] != "."]) == 1


@pytest.mark.parametrize(
    ("call", "number", "error", "words"),
    [
        ("openat", 1, "EROFS", "Read-only file system"),
        ("openat", 1, "EACCES", "Permission denied"),
        ("write", 1, "ENOSPC", "No space left on device"),
        ("write", 1, "EIO", "Input/output error"),
        ("fsync", 1, "EIO", "Input/output error"),
        ("rename", 1, "EIO", "Input/output error"),
    ],
)
def test_a_disk_that_refuses_is_one_line_and_no_file(
    call: str, number: int, error: str, words: str, bundle: Bundle
) -> None:
    """It says why, ends, and takes half of a file away again."""
    code, answered, seen = _make(bundle, call, f"error={error}:when={number}")
    assert "INJECTED" in seen
    assert (code, answered) == (EXIT_FAILED, words)
    assert list(bundle.path.parent.iterdir()) == [bundle.path]
