"""A day of honest traffic beside hostile traffic: `[http]`, MQTT and a serial port of one installed daemon.

The day is defined by its messages: a reading a second over MQTT, a line every ten seconds over the serial port and a
request every ten seconds over HTTP make 86,400, 8,640 and 8,640 in 24 hours. The long form sends as many, as fast as
the rate below allows; the short form sends a hundredth of them. Beside them hostile messages come, one
for every four honest ones: what `tests/fuzz` makes for requests and documents of transfers, garbage and huge payloads
on the topics of readings, topics with odd keys, noise on the wire, and connections that begin and do nothing.

Each honest message has to be answered, and MQTT readings once each. Delays are printed, for hours without and with
hostile traffic in turns; nothing is asserted of them, since the machine that runs this runs much else.
"""

import contextlib
import http.client
import json
import os
import random
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakePort, MakeSubscriber
from tests.fuzz.document_machines import OtaMachine
from tests.fuzz.http_machine import hostile_bytes
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.disk_faults import LONG
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

DAY_S = 86_400
SHARE = float(os.environ.get("EDGE_DAY", "1.0" if LONG else "0.01"))  # of a day's messages
READINGS, LINES, REQUESTS = int(DAY_S * SHARE), int(DAY_S / 10 * SHARE), int(DAY_S / 10 * SHARE)
PER_S = 200.0  # readings: 200 times as fast as the day
HOURS = 24 if SHARE > 0.05 else 4  # turns, without and with hostile traffic
HOSTILE_EACH = 4  # honest messages for each hostile one
KEYS = ("a", "b", "c")


class Day:
    """What was sent, and when it was answered."""

    def __init__(self, broker: Mosquitto, port: int, line: Any, honest: Subscriber) -> None:
        self.broker, self.port, self.line, self.honest = broker, port, line, honest
        self.sent: dict[int, tuple[float, bool]] = {}  # number -> when, and whether the hour was hostile
        self.lines = 0
        self.requests: Counter[int] = Counter()
        self.hostile: Counter[str] = Counter()

    def hour(self, count: int, enemy: "Enemy | None") -> None:
        """So many readings at their rate, with the lines and requests that belong to them."""
        lines, requests = round(count * LINES / READINGS), round(count * REQUESTS / READINGS)
        begin = time.monotonic()
        for at in range(count):
            number = len(self.sent) + 1
            reading = {"temperature": number % 50, "humidity": 40.0, "seq": number}
            self.sent[number] = time.monotonic(), enemy is not None
            self.honest.publish(f"sensors/{KEYS[number % 3]}/climate", reading)
            if at * lines // count != (at + 1) * lines // count:
                self.lines += 1
                self.line.write(b"%d,40.0,%d\n" % (self.lines % 50, self.lines))
            if at * requests // count != (at + 1) * requests // count:
                self.ask(number)
            if enemy is not None and at % HOSTILE_EACH == 0:
                enemy.act()
            left = begin + (at + 1) / PER_S - time.monotonic()
            if left > 0:
                time.sleep(left)  # a rate, and no wait for anything

    def ask(self, number: int) -> None:
        """One request; a server that is busy asks to try again, which an honest client does."""
        body = json.dumps({"temperature": number % 50, "humidity": 40.0})
        for _ in range(5):
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
            with contextlib.closing(connection):
                connection.request("POST", "/predict/comfort", body)
                status = connection.getresponse().status
            self.requests[status] += 1
            if status != 503:
                return
            time.sleep(0.05)


class Enemy:
    """Strangers on every way in; seeded."""

    def __init__(self, day: Day, client: Subscriber) -> None:
        self._rng = random.Random(7)
        self._day, self._client = day, client
        self._documents = OtaMachine()
        self._open: list[socket.socket] = []

    def act(self) -> None:
        """One hostile act."""
        act = self._rng.choice((self._publish, self._publish, self._transfer, self._request, self._linger, self._noise))
        self._day.hostile[act.__name__.strip("_")] += 1
        act()

    def _publish(self) -> None:
        rng = self._rng
        topic = rng.choice(("sensors/a/climate", "sensors/%s/climate" % ("k" * 30_000), "sensors/\u202e/climate",
                            "sensors/-/climate", "edge/room/predict/comfort", "edge/room/capture/comfort"))  # fmt: skip
        payload = rng.choice((b"", b"{", b"\xff" * 50, b"[" * 900, b'{"temperature": 1e400}', b"x" * 200_000,
                              b'{"temperature": "NaN", "humidity": {}}', b'{"seq": -1}', b"null"))  # fmt: skip
        self._client.publish(topic, payload, qos=rng.randrange(2))

    def _transfer(self) -> None:
        topic, payload = self._documents.message(self._rng, "nonsense")
        if not set(topic) & set("+#"):
            self._client.publish(f"edge/room/{topic}", payload, qos=self._rng.randrange(2))

    def _request(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._day.port), timeout=5) as client:
            client.sendall(hostile_bytes(self._rng))

    def _linger(self) -> None:
        """A connection that begins a request and never ends it; the oldest of sixty is closed."""
        with contextlib.suppress(OSError):
            client = socket.create_connection(("127.0.0.1", self._day.port), timeout=5)
            client.sendall(hostile_bytes(self._rng)[:40])
            self._open.append(client)
        if len(self._open) > 60:
            self._open.pop(0).close()

    def _noise(self) -> None:
        """Frames that are none, between the lines of an honest sensor: each ends as a line does."""
        rng = self._rng
        noise = bytes(byte for byte in rng.randbytes(rng.choice((3, 50, 900))) if byte not in b"\r\n")
        self._day.line.write(rng.choice((noise, b"1,2", b"nan,inf,-1", b",,,", b"9" * 3000)) + b"\n")

    def end(self) -> None:
        """Close what is open."""
        for client in self._open:
            client.close()


def device(broker: Mosquitto, bundle: Path, line: Path, port: int, *, signers: Path) -> str:
    """A device with every way in."""
    source = """
[[source]]
name = "{0}"
type = "{1}"
{2}

[[model]]
name = "{3}"
bundle = "{4}"
source = "{0}"
"""
    fields = f'port = "{line}"\nfields = ["temperature", "humidity", "seq"]\nreopen_max = 0.2'
    return (
        '[device]\nid = "room"\nhealth_interval = 0.5\n'
        + source.format("climate", "mqtt", 'topics = ["sensors/{key}/climate"]', "comfort", bundle)
        + source.format("wire", "serial", fields, "wired", bundle)
        + f'[upstream]\nurl = "{broker.url}"\nprotocol = "5"\nrequests = "answer"\n'
        + '[outbox]\npath = "room.db"\n'
        + f'[store]\npath = "models"\nallowed_signers = "{signers}"\nover_mqtt = "signed"\n'
        + f'[http]\nlisten = "127.0.0.1:{port}"\n'
    )


def delays(day: Day, heard: Subscriber, *, hostile: bool) -> list[float]:
    """Seconds from a reading's publication to its prediction's arrival, sorted."""
    arrived = {int(each.document["id"].rpartition("/")[2]): each.arrived for each in heard.on("edge/room/comfort/")}
    return sorted(
        arrived[number] - at for number, (at, was) in day.sent.items() if was is hostile and number in arrived
    )


@pytest.mark.timeout(3000 if SHARE > 0.05 else 240)
def test_honest_traffic_is_answered_beside_hostile_traffic(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    make_port: MakePort,
    free_port: int,
    tmp_path: Path,
) -> None:
    """Every reading once, every line, and every request, in hours with and without strangers."""
    signer = builders.signer(tmp_path / "keys")
    path = builders.classification().save(tmp_path / "comfort.onnx")
    signer.sign(path)
    line = make_port("wire")
    heard = make_subscriber(mosquitto.port, "edge/room/comfort/#", "edge/room/wired/#", "edge/room/health", qos=0)
    daemon = make_daemon(device(mosquitto, path, line.path, free_port, signers=signer.allowed)).start()
    line.write(b"\n")
    day = Day(mosquitto, free_port, line, make_subscriber(mosquitto.port))
    enemy = Enemy(day, make_subscriber(mosquitto.port))
    health: list[dict[str, Any]] = []
    for number in range(HOURS):
        day.hour(READINGS // HOURS, enemy if number % 2 else None)
        health += [each.document for each in heard.on("edge/room/health")[-1:]]
    enemy.end()

    def answered(topic: str) -> Counter[str]:
        found = [each.document["id"].rpartition("/")[2] for each in heard.on(topic)]
        return Counter(each for each in found if each.isdigit())

    readings = {str(number) for number in day.sent}
    wait_until(lambda: readings <= answered("edge/room/comfort/").keys(), "every reading's answer", 60.0)
    lines = {str(number) for number in range(1, day.lines + 1)}
    wait_until(lambda: lines <= answered("edge/room/wired/").keys(), "every line's answer", 60.0)
    times = answered("edge/room/comfort/")
    assert max(times[number] for number in readings) == 1
    assert day.requests[200] == sum(day.requests.values()) - day.requests[503]
    assert day.requests[200] >= REQUESTS // HOURS * HOURS - HOURS
    assert {document["status"] for document in health if "status" in document} <= {"online"}
    assert daemon.returncode is None
    quiet, loud = (delays(day, heard, hostile=each) for each in (False, True))
    p99 = [each[int(0.99 * len(each))] * 1e3 for each in (quiet, loud)]
    rss = [document["rss_bytes"] / 1e6 for document in health if "rss_bytes" in document]
    print(  # noqa: T201
        f"\nFIGURE hostile day: {len(day.sent)} readings, {day.lines} lines, {day.requests[200]} requests "
        f"({day.requests[503]} asked to try again), {sum(day.hostile.values())} hostile acts {dict(day.hostile)}; p50 "
        f"{quiet[len(quiet) // 2] * 1e3:.1f} and {loud[len(loud) // 2] * 1e3:.1f} ms, p99 {p99[0]:.1f} and "
        f"{p99[1]:.1f} ms, ratio {p99[1] / p99[0]:.2f}; RSS {', '.join(f'{each:.1f}' for each in rss)} MB"
    )
    assert daemon.stop() == 0
