"""A password that a program makes: when it is asked for, and what is reported where it gives none."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt import password_command
from edge_runtime.mqtt.password_command import PasswordCommand, PasswordError, current_password
from edge_runtime.system.child import collect_output
from tests.support.waiting import wait_until


class Clock:
    """Monotonic seconds that a test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def counting(folder: Path) -> list[str]:
    """A program that writes another password each time: `p1`, `p2`, ..."""
    script = "import pathlib, sys; f = pathlib.Path(sys.argv[1]); f.open('a').write('x'); print(f'p{f.stat().st_size}')"
    return [sys.executable, "-c", script, str(folder / "count")]


def test_a_password_is_kept_until_shortly_before_its_end(tmp_path: Path) -> None:
    """A fifth of its life, and five minutes at the most, is left for asking again."""
    clock = Clock()
    secret = PasswordCommand(counting(tmp_path), 100.0, clock=clock)
    assert secret.password() == "p1"
    assert secret.renew_at == pytest.approx(1080)
    clock.now = 1079.0
    assert secret.password() == "p1"
    clock.now = 1080.0
    assert secret.password() == "p2"
    assert secret.renew_at == pytest.approx(1160)
    day = PasswordCommand(counting(tmp_path), 86_400.0, clock=clock)
    assert day.password() == "p3"
    assert day.renew_at == pytest.approx(1080 + 86_400 - 300)


def test_without_a_lifetime_each_connection_asks(tmp_path: Path) -> None:
    """And nothing is renewed by itself."""
    secret = PasswordCommand(counting(tmp_path), None)
    assert [secret.password(), secret.password()] == ["p1", "p2"]
    assert secret.renew_at is None


def test_a_password_that_was_refused_is_not_used_again(tmp_path: Path) -> None:
    """However young it is."""
    secret = PasswordCommand(counting(tmp_path), 100.0)
    assert secret.password() == "p1"
    secret.forget()
    assert secret.password() == "p2"
    secret.renew()
    assert secret.password() == "p3"


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("import sys; sys.stderr.write('s3cret'); sys.exit(3)", "ended with exit code 3: run it by hand"),
        ("", "expected a password in UTF-8 as the first line of its output, found none: run it by hand"),
        ("print()", "expected a password in UTF-8 as the first line of its output, found none"),
        ("import sys; sys.stdout.buffer.write(b's3cret\\xff')", "expected a password in UTF-8"),
        ("while True: print('s3cret' * 1000, end='')", "expected a password in UTF-8"),
        ("import os, time; os.close(1); time.sleep(600)", "has not ended within 0.5 s"),
        ("import time; print('s3cret', flush=True); time.sleep(600)", "has not ended within 0.5 s"),
    ],
)
def test_what_gives_no_password_is_one_sentence_without_a_secret(
    script: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails, is silent, writes other bytes, floods, or hangs; the process is gone in each case."""
    if "not ended" in sentence:
        monkeypatch.setattr(password_command, "PATIENCE_S", 0.5)
    secret = PasswordCommand([sys.executable, "-c", script], 100.0)
    with pytest.raises(PasswordError) as caught:
        secret.password()
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(f"password_command: {sys.executable}")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "why"),
    [("/nowhere/token", "No such file or directory"), ("/etc", "Permission denied"), ("tok\0en", "embedded null byte")],
)
def test_a_program_that_cannot_be_started_is_one_sentence(program: str, why: str) -> None:
    """With its path, and the system's reason where it has one."""
    with pytest.raises(PasswordError) as caught:
        PasswordCommand([program], None).password()
    assert str(caught.value) == f"password_command: {program} cannot be started ({why}): look at its path"


def test_a_password_is_as_long_as_mqtt_allows() -> None:
    """65,535 bytes, the length that two bytes can state; one more is refused."""
    script = "import sys; print('x' * int(sys.argv[1]))"
    longest = PasswordCommand([sys.executable, "-c", script, "65535"], None)
    assert longest.password() == "x" * 65_535
    with pytest.raises(PasswordError, match="found none"):
        PasswordCommand([sys.executable, "-c", script, "65536"], None).password()


def test_the_program_has_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the manual has it."""
    given = []

    def hang(_argv: object, *, most_bytes: int, seconds: float) -> tuple[int, bytes]:
        given.append(seconds)
        raise TimeoutError

    monkeypatch.setattr(password_command, "collect_output", hang)
    with pytest.raises(PasswordError, match="token has not ended within 30 s"):
        PasswordCommand(["token"], None).password()
    assert given == [30.0]


@pytest.mark.parametrize("ask", [PasswordCommand.password, PasswordCommand.renew])
def test_the_program_runs_once_at_a_time(
    ask: Callable[[PasswordCommand], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while two threads ask."""
    both_run = threading.Barrier(2)
    met = []

    def meet(_argv: object, *, most_bytes: int, seconds: float) -> tuple[int, bytes]:
        try:
            both_run.wait(0.2)
        except threading.BrokenBarrierError:  # alone
            return 0, b"p"
        met.append("two at once")
        return 0, b"p"

    monkeypatch.setattr(password_command, "collect_output", meet)
    secret = PasswordCommand(["token"], None)
    threads = [threading.Thread(target=ask, args=(secret,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == []
    assert secret.password() == "p"


def test_a_password_comes_from_where_the_configuration_has_it(tmp_path: Path) -> None:
    """A program, a file, or nowhere."""
    (tmp_path / "secret").write_text("from a file\n")
    by_program = BrokerTable(url="mqtt://b", password_command=("echo", "from a program"))
    by_file = BrokerTable(url="mqtt://b", password_file=str(tmp_path / "secret"))
    found = [current_password(table) for table in (by_program, by_file, BrokerTable(url="mqtt://b"))]
    assert found == ["from a program", "from a file", None]


def test_the_program_gets_little_of_our_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the service beside the folder of its credentials, and no shell."""
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    code, output = collect_output(["env"], most_bytes=10_000, seconds=30.0)
    names = {line.split("=")[0] for line in output.decode().splitlines()}
    assert code == 0
    assert "CREDENTIALS_DIRECTORY" in names
    assert names <= {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "CREDENTIALS_DIRECTORY"}
    assert collect_output(["echo", "$HOME; id"], most_bytes=100, seconds=30.0) == (0, b"$HOME; id\n")


def test_children_of_the_program_end_with_it(tmp_path: Path) -> None:
    """Nothing of its group is left behind."""
    pid = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pid}; echo password"
    assert collect_output(["sh", "-c", f"({script}) <&- 2>&- "], most_bytes=9, seconds=30.0)[1].startswith(b"password")
    stat = Path(f"/proc/{pid.read_text().strip()}/stat")

    def is_gone() -> bool:
        try:
            return stat.read_text().split()[2] == "Z"  # nothing in a container may collect it
        except OSError:
            return True

    wait_until(is_gone, stat.read_text)
