"""Sinks of a daemon that is killed at any moment: whole lines within the bound, and an HTTP outbox that goes on."""

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.devices import climate_device
from tests.support.post_server import PostServer
from tests.support.subscriber import Message
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

KILLS = 4
MAX_BYTES = 40_000


def _sizes(path: Path) -> int:
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}.1")) if each.exists())


def _lines(path: Path) -> list[dict[str, Any]]:
    older = path.with_name(f"{path.name}.1")
    text = "".join(each.read_text() for each in (older, path) if each.exists())
    return [json.loads(line) for line in text.splitlines()]


def _start_of(document: dict[str, Any]) -> int:
    return int(document["id"].split("/")[-2])


def _has_new_start(path: Path, known: set[int]) -> bool:
    """The newest line is of a start that was not here before."""
    lines = _lines_of_last_start(path) if path.exists() else []
    return bool(lines) and _start_of(lines[0]) not in known


def _has_stored(start: int, most: int, messages: list[Message]) -> bool:
    """The HTTP sink of a start had so many predictions on disk, by its health."""
    health = [each.document for each in messages if each.topic == "edge/room/health"]
    return any(each["sinks"]["web"].get("stored", 0) >= most for each in health if each["start"] == start)


def test_kills_leave_whole_lines_within_the_bound_and_an_outbox_that_goes_on(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """The file goes on behind what was there; the server gets what had waited for more than a second, in order."""
    rng = random.Random(20261128)
    home = make_subscriber(mosquitto.port, "edge/room/health")
    server = PostServer()
    server.judge = lambda _: (503, {})
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    (tmp_path / "readings.jsonl").write_text('{"temperature": 20.0, "humidity": 40.0}\n' * 50)
    text = climate_device(mosquitto, bundle).replace(
        'type = "mqtt"\ntopics = ["sensors/{key}/climate"]\n',
        'type = "replay"\nfiles = ["readings.jsonl"]\nrate_hz = 200.0\nloop = true\ntimes = "now"\n',
    )
    text += (
        f'\n[[sink]]\nname = "log"\ntype = "file"\npath = "p.jsonl"\nmax_bytes = {MAX_BYTES}\n'
        f'[[sink]]\nname = "web"\ntype = "http"\nurl = "{server.url}"\nretry_max = 0.2\n'
    )
    daemon = make_daemon(text, STATE_DIRECTORY=str(tmp_path / "state"))
    path = daemon.config.parent / "p.jsonl"
    waited: list[str] = []
    starts: set[int] = set()
    for _ in range(KILLS):
        daemon.start()
        wait_until(partial(_has_new_start, path, starts), "lines of this start")
        made = _lines_of_last_start(path)
        starts.add(_start_of(made[0]))
        most = made[-1]["seq"] + rng.randrange(20, 200)
        home.wait_until(partial(_has_stored, _start_of(made[0]), most), "rows of this start")
        waited += [each["id"] for each in made]
        daemon.kill()
        assert _sizes(path) <= MAX_BYTES
    daemon.start()
    server.judge = lambda _: (200, {})
    wait_until(lambda: {each["id"] for each in server.accepted} >= set(waited), "everything that had waited", 60.0)
    assert daemon.stop() == 0
    found = _lines(path)
    assert _sizes(path) <= MAX_BYTES
    assert len({each["id"] for each in found}) == len(found)
    order = [(_start_of(each), each["seq"]) for each in found]
    assert order == sorted(order)
    first = {each["id"]: (_start_of(each), each["seq"]) for each in reversed(server.accepted)}
    late = [first[name] for name in dict.fromkeys(each["id"] for each in server.accepted) if name in set(waited)]
    assert late == sorted(late)
    server.stop()


def _lines_of_last_start(path: Path) -> list[dict[str, Any]]:
    """Whole lines of the newest start; the last line may be in the making."""
    text = path.read_text()
    found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [each for each in found if _start_of(each) == _start_of(found[-1])]
