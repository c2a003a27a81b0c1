"""What code inside a model file can do once it runs: probes that try to get out of the converter's child.

A pickle with --trust stands for the next hole of a framework: it runs what it likes, behind the walls.
"""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from converter.isolation import Walls, enter

ROOT = Path(__file__).resolve().parents[2]


class Payload:
    """Unpickling it runs a text."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return (exec, (self.code, {}))


def missing_walls(tmp_path: Path) -> str:
    """What this kernel does not offer, as a child says it."""
    code = (
        f"from converter.isolation import Walls, enter\nprint(enter(Walls(('/',), {str(tmp_path)!r}, 1 << 40, 1000)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def attack(tmp_path: Path) -> Any:
    """Run code from inside a model file; what it printed, and what the program came to."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        joblib.dump(Payload(code), tmp_path / "m.joblib")
        (tmp_path / "out").mkdir(exist_ok=True)
        arguments = ["build", str(tmp_path / "m.joblib"), "--trust", "-o", str(tmp_path / "out" / "o.onnx")]
        return subprocess.run(
            [sys.executable, "-m", "converter.cli", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "HOME": str(tmp_path)},
        )  # fmt: skip

    return run


def test_it_writes_nowhere_but_into_a_folder_that_is_gone_afterwards(attack: Any, tmp_path: Path) -> None:
    """Not beside the model, not beside the bundle, not into the home folder; its own is removed."""
    if "any file" in missing_walls(tmp_path):
        pytest.skip("this kernel has no Landlock")
    places = [str(tmp_path / "gotcha"), str(tmp_path / "out" / "gotcha"), str(tmp_path / "m.joblib"), "/tmp/gotcha"]
    done = attack(
        "import os, tempfile\n"
        f"for place in {places!r}:\n"
        "    try:\n        open(place, 'ab').write(b'x'); print('WROTE', place)\n"
        "    except OSError as error: print('kept out', error.errno)\n"
        f"model = {places[2]!r}\n"
        "for call, words in ((os.mkdir, ['/tmp/gotcha']), (os.unlink, [model]), (os.rename, [model, '/tmp/gotcha'])):\n"
        "    try:\n        call(*words); print('WROTE')\n"
        "    except OSError as error: print('kept out', error.errno)\n"
        "open(tempfile.gettempdir() + '/mine', 'w').write('x'); print('own folder', tempfile.gettempdir())"
    )
    assert "WROTE" not in done.stdout
    assert done.stdout.count("kept out") == 7, done.stdout + done.stderr
    own = next(line for line in done.stdout.splitlines() if line.startswith("own folder")).split()[-1]
    assert not Path(own).exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.joblib", "out"]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


def test_it_reads_no_keys_and_no_other_files(attack: Any, tmp_path: Path) -> None:
    """The model, the data and the system's libraries are readable; a key beside the model is not."""
    if "any file" in missing_walls(tmp_path):
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "signing.key").write_text("secret words")
    done = attack(
        f"for place in ({str(tmp_path / 'signing.key')!r}, '/etc/shadow', {str(tmp_path / 'out')!r}):\n"
        "    try:\n        print('READ', open(place, 'rb').read()[:20])\n"
        "    except OSError as error: print('kept out')\n"
        f"print('model', len(open({str(tmp_path / 'm.joblib')!r}, 'rb').read()) > 0)"
    )
    assert "secret" not in done.stdout
    assert "model True" in done.stdout
    assert done.stdout.count("kept out") == 3


def test_it_reaches_no_server_not_even_on_this_machine(attack: Any, tmp_path: Path) -> None:
    """Neither TCP nor UDP, by number or by name."""
    if "network" in missing_walls(tmp_path):
        pytest.skip("this system has neither network namespaces nor Landlock's rules for TCP")
    with socket.create_server(("127.0.0.1", 0)) as server:
        seen: list[Any] = []
        server.settimeout(0.2)
        stop = threading.Event()

        def accept() -> None:
            while not stop.is_set():
                try:
                    seen.append(server.accept())
                except TimeoutError:
                    continue

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            done = attack(
                "import socket\n"
                f"for host in ('127.0.0.1', 'localhost'):\n"
                f"    try:\n        socket.create_connection((host, {server.getsockname()[1]}), 2); print('REACHED')\n"
                "    except OSError: print('kept out')\n"
            )
        finally:
            stop.set()
            thread.join(timeout=10)
    assert not seen
    assert done.stdout.count("kept out") == 2


def test_it_cannot_eat_all_memory_and_a_crash_is_one_sentence(attack: Any) -> None:
    """An allocation beyond the machine fails inside; a crash of a library is told as what it is."""
    done = attack("b = bytearray(1 << 45)")
    assert done.returncode == 1
    assert "MemoryError" in done.stderr or "out of memory" in done.stderr
    crashed = attack("import ctypes; ctypes.string_at(0)")
    assert crashed.returncode == 1
    assert "the process that reads the model crashed (SIGSEGV" in crashed.stderr
    assert len(crashed.stderr.strip().splitlines()) == 1


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Whoever kills the program kills what it started: nothing goes on working with a stranger's file."""
    joblib.dump(
        Payload("import os, time; print('child', os.getpid(), flush=True); time.sleep(600)"), tmp_path / "m.joblib"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "converter.cli", "build", str(tmp_path / "m.joblib"), "--trust", "-o",
         str(tmp_path / "o.onnx")],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as program:  # fmt: skip
        assert program.stdout is not None
        child = next(int(line.split()[1]) for line in program.stdout if line.startswith("child"))
        handle = os.pidfd_open(child)
        try:
            program.kill()
            program.wait(timeout=60)
            import select  # noqa: PLC0415

            assert select.select([handle], [], [], 60)[0]
        finally:
            os.close(handle)


def test_what_it_prints_in_anger_reaches_no_terminal(tmp_path: Path) -> None:
    """Warnings of frameworks, and whatever C code writes to standard error, stay in the child."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))
    joblib.dump(model, tmp_path / "m.joblib")
    np.savez(tmp_path / "d.npz", x=x, y=(x[:, 0] > 0).astype(int))
    (tmp_path / "sitecustomize.py").write_text("import warnings, os; warnings.warn('foreign'); os.write(2, b'')")
    done = subprocess.run(
        [sys.executable, "-m", "converter.cli", "build", str(tmp_path / "m.joblib"), "--trust", "--data",
         str(tmp_path / "d.npz"), "--quantize", "none", "-o", str(tmp_path / "o.onnx")],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "o.onnx").exists()
    assert "wrote " in done.stdout
    assert str(tmp_path / "o.onnx") in done.stdout


def test_a_system_without_walls_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be kept out is named, and nothing is claimed."""

    class NoSystemCalls:
        """A kernel that knows none of them."""

        def __getattr__(self, name: str) -> Any:
            return lambda *_: -1

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: NoSystemCalls())
    monkeypatch.setattr("resource.setrlimit", lambda *_: None)
    missing = enter(Walls((), "/nowhere", 1 << 40, 1000))
    assert missing == ["reading and writing any file that its user may", "using the network"]
