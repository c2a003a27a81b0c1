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

from converter.isolation import Restrictions, enter
from tests.support.waiting import patient, wait_until

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
        "from converter.isolation import Restrictions, enter\n"
        f"print(enter(Restrictions(('/',), {str(tmp_path)!r}, 1 << 40, 1000)))"
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
            cwd=ROOT, capture_output=True, text=True, timeout=patient(120), check=False,
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


def test_it_makes_no_socket_of_any_kind(attack: Any, tmp_path: Path) -> None:
    """UDP, raw, netlink, and the files of other programs' sockets, of which a container's or a bus obeys its user."""
    if "UDP" in missing_walls(tmp_path) or "sockets" in missing_walls(tmp_path):
        pytest.skip("this machine has no filter of system calls")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard, socket.socket(socket.AF_UNIX) as obeying:
        heard.bind(("127.0.0.1", 0))
        heard.setblocking(False)
        obeying.bind(str(tmp_path / "daemon.sock"))
        obeying.listen()
        obeying.setblocking(False)
        done = attack(
            "import socket\n"
            f"places = [(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {heard.getsockname()[1]})),\n"
            f"          (socket.AF_UNIX, socket.SOCK_STREAM, {str(tmp_path / 'daemon.sock')!r}),\n"
            "          (socket.AF_NETLINK, socket.SOCK_RAW, (0, 0)),\n"
            "          (socket.AF_INET, socket.SOCK_RAW, ('127.0.0.1', 0)),\n"
            "          (socket.AF_VSOCK, socket.SOCK_STREAM, (2, 22)),\n"
            "          (socket.AF_PACKET, socket.SOCK_RAW, ('lo', 0))]\n"
            "for family, kind, place in places:\n"
            "    try:\n        s = socket.socket(family, kind); print('MADE', family)\n"
            "        s.connect(place); s.send(b'x'); print('REACHED', family)\n"
            "    except OSError as error: print('kept out', error.errno)\n"
            "import ctypes\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "print('ring', libc.syscall(425, 4, ctypes.create_string_buffer(120)))"
        )
        for each, take in ((heard, lambda: heard.recv(10)), (obeying, obeying.accept)):
            with pytest.raises(BlockingIOError):
                take()
            assert each.fileno() > 0
    assert done.stdout.count("kept out 13") == 6, done.stdout + done.stderr
    assert "MADE" not in done.stdout
    assert "ring -1" in done.stdout


def test_a_link_in_the_place_of_its_bundle_is_not_followed(attack: Any, tmp_path: Path) -> None:
    """What takes the bundle may read more than the child: no link, no folder that is one, and no pipe is read."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "o.onnx").write_text("secret words")
    secret, out = str(tmp_path / "keys" / "o.onnx"), tmp_path / "out" / "o.onnx"
    ways = (
        "os.symlink(secret, out)",
        "os.rmdir(folder); os.symlink(os.path.dirname(secret), folder)",
        "os.mkfifo(out)",
        "os.mkdir(out)",
    )
    for way in ways:
        done = attack(
            "import os, sys\n"
            f"secret = {secret!r}\n"
            "out = [word for word in sys.argv if word.endswith('o.onnx')][-1]\n"
            "folder = os.path.dirname(out)\n"
            f"{way}\n"
            "print('planted')\n"
            "os._exit(0)"
        )
        assert "planted" in done.stdout, (way, done.stdout, done.stderr)
        assert not out.exists(), way
        assert not out.is_symlink(), way
        assert "secret" not in done.stdout + done.stderr


def test_a_link_in_the_place_of_its_errors_is_not_followed(attack: Any, tmp_path: Path) -> None:
    """The last line of what frameworks wrote is shown after a crash, and only where it is what they wrote."""
    (tmp_path / "signing.key").write_text("secret words")
    done = attack(
        "import ctypes, os, tempfile\n"
        "place = tempfile.gettempdir() + '/stderr.txt'\n"
        f"os.unlink(place); os.symlink({str(tmp_path / 'signing.key')!r}, place)\n"
        "ctypes.string_at(0)"
    )
    assert "crashed (SIGSEGV" in done.stderr
    assert "secret" not in done.stderr


def test_what_it_starts_ends_with_it_and_is_not_waited_for(attack: Any, tmp_path: Path) -> None:
    """A process that the model leaves behind, in a session of its own or not, is ended, and is not waited for."""
    if "sockets" in missing_walls(tmp_path) or "UDP" in missing_walls(tmp_path):
        pytest.skip("this machine has no filter of system calls")
    done = attack(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    for leave in (os.setsid, os.setpgrp):\n"
        "        try: leave(); print('LEFT')\n"
        "        except OSError: pass\n"
        "    time.sleep(600)\n"
        "pid = os.fork()\n"
        "if pid == 0: time.sleep(600)\n"
        "print('left behind', pid, flush=True)\n"
        "os._exit(3)"
    )
    assert done.returncode == 3
    assert "LEFT" not in done.stdout
    left = int(done.stdout.split("left behind")[1].split()[0])
    wait_until(lambda: not Path(f"/proc/{left}").exists(), "the end of what the model started")


def test_what_it_says_is_no_order_to_the_terminal(attack: Any) -> None:
    """Escape sequences, and a line without an end, come out as printable text of bounded length; it has no terminal."""
    done = attack(
        "import os\n"
        "os.write(1, b'\\x1b]0;title\\x07\\x1b[2J\\x9b\\r hidden\\n')\n"
        "os.write(1, b'x' * 300_000)\n"
        "try: os.open('/dev/tty', os.O_RDWR); print('TERMINAL')\n"
        "except OSError: pass\n"
        "os._exit(0)"
    )
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    assert "hidden" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 140_000
    assert "TERMINAL" not in done.stdout


def test_it_writes_no_file_without_end(attack: Any) -> None:
    """A file that is all hole is cheap to make, and would fill the disk when it is put into place."""
    done = attack(
        "import os, tempfile\n"
        "try: open(tempfile.gettempdir() + '/hole', 'wb').truncate(1 << 40); print('MADE')\n"
        "except OSError as error: print('kept out', error.errno)"
    )
    assert "kept out 27" in done.stdout
    assert "MADE" not in done.stdout


def test_it_cannot_eat_all_memory_and_a_crash_is_one_sentence(attack: Any) -> None:
    """An allocation beyond the machine fails inside; a crash of a library is named as such."""
    done = attack("b = bytearray(1 << 45)")
    assert done.returncode == 1
    assert "MemoryError" in done.stderr or "out of memory" in done.stderr
    crashed = attack("import ctypes; ctypes.string_at(0)")
    assert crashed.returncode == 1
    assert "the process that reads the model crashed (SIGSEGV" in crashed.stderr
    assert len(crashed.stderr.strip().splitlines()) == 1


def with_a_model(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Build a good model whose file also runs code."""
    x = np.random.default_rng(0).normal(size=(40, 2))
    model = LogisticRegression().fit(x, (x[:, 0] > 0).astype(int))
    model.extra = Payload(code)
    joblib.dump(model, folder / "m.joblib")
    return subprocess.run(
        [sys.executable, "-m", "converter.cli", "build", str(folder / "m.joblib"), "--trust", "--quantize", "none",
         "-o", str(folder / "o.onnx")],
        cwd=ROOT, capture_output=True, text=True, timeout=patient(120), check=False,
    )  # fmt: skip


def test_an_abort_after_the_work_is_done_is_no_crash(tmp_path: Path) -> None:
    """Threads of a framework that still run when Python says farewell may abort the process; the bundle is there."""
    done = with_a_model(tmp_path, "import atexit, os\natexit.register(os.abort)")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "o.onnx").exists()


def test_a_fault_of_its_own_is_one_sentence_with_its_place(tmp_path: Path) -> None:
    """An exception that no stage expects is neither a traceback nor silence."""
    done = with_a_model(tmp_path, "import converter.conversion as c\nc.agree = lambda *_: [][3]")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "edge-convert build: stopped by a fault of its own (IndexError: list index out of range; in " in done.stderr
    assert "conversion.py, line" in done.stderr
    assert not (tmp_path / "o.onnx").exists()


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
            program.wait(timeout=patient(60))
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
        cwd=ROOT, capture_output=True, text=True, timeout=patient(120), check=False,
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
    missing = enter(Restrictions((), "/nowhere", 1 << 40, 1000))
    assert missing == ["reading and writing any file that its user may", "using the network"]
