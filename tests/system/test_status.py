"""`edge-runtime status` beside a daemon that a user runs in the foreground."""

import json
import os
from pathlib import Path

import pytest

from edge_runtime.cli import main
from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.installed import Installed
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

DEVICE = f"foreground-{os.getpid()}"  # `status` also sees what others run as this user


def test_status_shows_a_daemon_in_the_foreground(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, installed: Installed, tmp_path: Path
) -> None:
    """Without a service there is a state to show too, for as long as the daemon runs, and not after its clean stop."""
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    daemon = make_daemon(climate_device(mosquitto, bundle, device=DEVICE), XDG_RUNTIME_DIR=str(session)).start()

    def status(*words: str) -> tuple[int, str]:
        done = installed.run(
            installed.edge_runtime, "status", DEVICE, *words, cwd=tmp_path, XDG_RUNTIME_DIR=str(session)
        )
        return done.returncode, done.stdout + done.stderr

    wait_until(lambda: status()[0] == 0, lambda: f"the state; {status()}", 20.0)
    code, text = status("--json")
    assert code == 0
    (document,) = json.loads(text)
    assert (document["device"], document["pid"], document["running"]) == (DEVICE, daemon.pid, True)
    daemon.kill()
    code, text = status()
    assert code == 1
    assert "not running any more" in text
    daemon.start()
    assert daemon.stop() == 0
    code, text = status()
    assert code == 1
    assert "found none" in text


def test_a_rejected_topic_of_64_kilobytes_is_shown_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The place of a rejected frame is a topic that a stranger chose: short, and without what steers a terminal."""
    last = {"time": "t", "where": "s/\u202e" + 60_000 * "k", "why": "no", "sample": ""}
    source = {"state": "connected", "last_rejected": {"bad_key": last}}
    document = {"device": "room", "pid": os.getpid(), "written": 0, "published": 0, "queued": 0, "readings": 0}
    document |= {"link": {}, "sources": {"climate": source}}
    (tmp_path / "room.status.json").write_text(json.dumps(document))
    main(["status", "--folder", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "bad_key at t: s/" in shown
    assert all(line.isprintable() and len(line) < 400 for line in shown.splitlines())
