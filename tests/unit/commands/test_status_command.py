"""`edge-runtime status`: what it makes of the files that daemons keep in /run."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.cli import main

MODEL: dict[str, Any] = {"name": "m", "version": "1.0.0", "state": "active", "why": None, "digest": "a" * 64}
DOCUMENT: dict[str, Any] = {
    "device": "press",
    "written": 0.0,
    "published": 7,
    "queued": 1,
    "readings": 9,
    "link": {"upstream": "connected"},
    "sources": {"imu": {"state": "open"}},
    "rejected": {},
    "dropped": {},
    "errors": {"disconnected": 2},
}


def status(folder: Path, capsys: pytest.CaptureFixture[str], **changes: Any) -> tuple[int, str]:
    """Exit code and text for one daemon that is this very process, unless the changes say otherwise."""
    document = DOCUMENT | {"pid": os.getpid(), "slots": [MODEL]} | changes
    (folder / "press.status.json").write_text(json.dumps(document))
    return main(["status", "--folder", str(folder)]), capsys.readouterr().out


def test_a_running_daemon_is_described_in_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Link, sources, models and what went wrong, and exit code 0."""
    code, text = status(tmp_path, capsys)
    assert code == 0
    assert "  model m: 1.0.0 active, digest aaaaaaaaaaaa\n" in text
    assert "  errors: disconnected 2\n" in text
    assert "shadow" not in text


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        ({"version": "1.1.0", "state": "staged", "why": None}, "    in its shadow: 1.1.0 staged\n"),
        ({"version": "1.1.0", "state": "rejected", "why": "crashed"}, "    in its shadow: 1.1.0 rejected (crashed)\n"),
    ],
)
def test_a_shadow_stands_below_its_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], beside: dict[str, Any], words: str
) -> None:
    """The candidate that runs, or why the last one ended."""
    assert words in status(tmp_path, capsys, slots=[MODEL | {"shadow": beside}])[1]


def test_sinks_and_the_edge_node_are_a_line_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong with each is its sentence."""
    sinks = {"log": {"state": "p.jsonl: open"}, "siren": {"state": "siren: ended with exit code 1"}}
    text = status(tmp_path, capsys, sinks=sinks, sparkplug={"state": "plant/press: born, 2 devices"})[1]
    assert "  sink log: p.jsonl: open\n  sink siren: siren: ended with exit code 1\n" in text
    assert "  sparkplug plant/press: born, 2 devices\n" in text


def test_a_daemon_that_is_gone_is_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its file is still there, its process is not."""
    code, text = status(tmp_path, capsys, pid=0)
    assert code == 1
    assert "not running any more" in text


def test_the_last_rejected_reading_stands_below_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its reason, its own time, its place, the explanation and the sample."""
    last = {"time": "2026-11-23T11:19:04Z", "where": "s/office", "why": "no `t`, found `T`", "sample": '{"T": 1}'}
    source = {"state": "connected", "last_rejected": {"missing_channel": last}}
    text = status(tmp_path, capsys, sources={"climate": source})[1]
    assert '    missing_channel at 2026-11-23T11:19:04Z: s/office: no `t`, found `T` ({"T": 1})\n' in text
