"""Bringing captures in: the device's half and this machine's, with a connection that breaks in between."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.capture.folder import read_captures
from edge_runtime.errors import CommandError
from edge_runtime.fleet import fetch_captures
from edge_runtime.fleet.errors import AwayError
from edge_runtime.fleet.fetch_captures import fetch
from edge_runtime.fleet.inventory import FleetDevice
from edge_runtime.fleet.rollout import Outcome
from tests.support.captured import numbered, write_captures
from tests.support.installed import ROOT
from tests.unit.fleet.test_rollout import targets


class _Watcher:
    """Shows nothing."""

    def __getattr__(self, _name: str) -> Callable[..., None]:
        return lambda *_: None


class _Wire:
    """Stands in for ssh: the device's half runs here, and what it sends can be cut or changed."""

    def __init__(self, config: Path) -> None:
        self.cuts: list[int] = []  # how many bytes of each connection come through; all when none is left
        self.says: bytes | None = None  # what comes instead of captures
        self.asked: list[dict[str, Any]] = []
        self._config = config

    @contextlib.contextmanager
    def start(self, _target: FleetDevice, _words: Sequence[str]) -> Iterator[Any]:
        """As `ssh.start`."""
        device = [sys.executable, "-m", "edge_runtime", "captures", "--here", str(self._config)]
        cut = self.cuts.pop(0) if self.cuts else None
        if self.says is not None:
            device = [sys.executable, "-c", f"import sys; sys.stdin.read(); sys.stdout.buffer.write({self.says!r})"]
        elif cut is not None:
            inner = f"{sys.executable} -m edge_runtime captures --here {self._config}"
            device = ["sh", "-c", f"{inner} | head -c {cut}; echo broken pipe >&2; exit 255"]
        process = subprocess.Popen(
            device, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError, ValueError):
                    if pipe is not None:
                        pipe.close()


@pytest.fixture
def wire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Wire:
    """A device with captures in `card/`."""
    config = tmp_path / "d0.toml"
    config.write_text(
        '[device]\nid = "d0"\n[[source]]\nname = "s"\ntype = "serial"\nport = "/dev/null"\nformat = "csv"\n'
        'fields = ["a"]\n[upstream]\nurl = "mqtt://localhost"\n[capture]\npath = "card"\n'
    )
    made = _Wire(config)
    monkeypatch.setattr(fetch_captures, "start", made.start)
    return made


def _fetch(folder: Path) -> Outcome:
    (target,) = targets("d0")
    return fetch(target, _Watcher(), folder, pause=lambda _: None)


def _ids(folder: Path) -> list[str]:
    return [found.entry.id for found in read_captures(folder).windows]


def test_only_what_is_new_is_brought_in(wire: _Wire, tmp_path: Path) -> None:
    """And what the device has removed meanwhile stays here."""
    card, here = tmp_path / "card", tmp_path / "here"
    write_captures(card, numbered(5))
    assert _fetch(here).details["windows"] == 5
    assert _fetch(here).result == "unchanged"
    write_captures(card, numbered(3, start=5))
    outcome = _fetch(here)
    assert (outcome.result, outcome.details["windows"]) == ("done", 3)
    assert _ids(here / "d0") == [each.id for each in numbered(8)]
    for path in card.glob("part-*"):
        path.unlink()
    write_captures(card, numbered(2, start=100))
    assert _fetch(here).details["windows"] == 2
    assert set(_ids(here / "d0")) == {each.id for each in [*numbered(8), *numbered(2, start=100)]}


def test_a_connection_that_breaks_anywhere_is_gone_on_with(wire: _Wire, tmp_path: Path) -> None:
    """Each try keeps the whole captures that came; nothing is sent twice, and nothing is missing at the end."""
    card, here = tmp_path / "card", tmp_path / "here"
    write_captures(card, numbered(40))
    wire.cuts = [0, 10, 300]
    with pytest.raises(AwayError):
        _fetch(here)
    wire.cuts = [1500, 1700]
    brought = _fetch(here).details["bytes"]  # by the last of three tries
    assert isinstance(brought, int)
    assert brought < sum(path.stat().st_size for path in card.glob("part-*")) - 2000
    assert _ids(here / "d0") == _ids(card)


@pytest.mark.parametrize(
    "says",
    [
        b"Welcome to press-07\n",
        b'{"file":"../../etc/passwd","offset":0,"bytes":4}\nroot',
        b'{"file":"part-00000001.captures","offset":0,"bytes":4}\nroot',
        b'{"file":"part-00000001.captures","offset":7,"bytes":4}\nroot',
        b'{"file":"part-00000001.captures","offset":0,"bytes":-4}\nroot',
        b"[1]\n",
        b"\xff\n",
    ],
)
def test_a_device_that_sends_something_else_is_refused(wire: _Wire, says: bytes, tmp_path: Path) -> None:
    """In one sentence, and nothing is written outside of its folder."""
    wire.says = says
    with pytest.raises(CommandError, match="expected"):
        _fetch(tmp_path / "here")
    assert not [path for path in tmp_path.rglob("passwd") if path.exists()]


def test_what_a_device_says_of_itself_is_reported(wire: _Wire, tmp_path: Path) -> None:
    """No `[capture]` there, and an old runtime that does not know the command."""
    config = tmp_path / "d0.toml"
    config.write_text(config.read_text().replace('[capture]\npath = "card"\n', ""))
    with pytest.raises(CommandError, match=r"expected \[capture\] with a folder, found none"):
        _fetch(tmp_path / "here")


def test_a_folder_that_is_not_there_yet_has_nothing_new(wire: _Wire, tmp_path: Path) -> None:
    """The daemon was never started."""
    assert _fetch(tmp_path / "here").result == "unchanged"


def test_the_device_reads_no_endless_question(wire: _Wire, tmp_path: Path) -> None:
    """What is no JSON is refused."""
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime", "captures", "--here", str(tmp_path / "d0.toml")],
        input=json.dumps({"have": 5}).encode(),
        capture_output=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert b"stdin: expected what the other side has" in done.stderr
