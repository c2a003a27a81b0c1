"""Thousands of devices that are not there: they speak the documented protocol of `docs/ota.md` and `docs/fleet.md`.

A program of its own, so that it can run in another network namespace: `python -m tests.support.stand_ins HOST PORT
ALLOWED_SIGNERS`, with a line of JSON for each command on stdin, and a line of JSON as the answer. Nothing of the
product is imported: documents are read as JSON, and signatures are checked by OpenSSH. Kinds: `good`, `failing`
(every bundle fails its self-test there), `slow` (asks for a chunk every `SLOW_S`), `hung` (falls silent after the first
chunk), `away` (offline until a request to come back, with a connection of its own).
"""

import hashlib
import heapq
import itertools
import json
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from tests.support.waiting import patient

CHUNK = 32 * 1024
SLOW_S = 8.0
PROBATION_S = 2.0
ASK_AGAIN_S = 5.0
HEALTH_AFTER_S = 1.0  # as a device does, which gathers what is asked within a second
TOPICS = ("desired", "ota/ask", "ota/offer", "ota/chunk/+/+")


class Signatures:
    """Checks signatures by `ssh-keygen -Y verify`; the very same text and signature only once."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed
        self._known: dict[tuple[bytes, str], bool] = {}
        self.checked = 0

    def holds(self, content: bytes, signature: str, namespace: str) -> bool:
        """A trusted key has signed it."""
        key = (hashlib.sha256(content).digest(), signature)
        if key not in self._known:
            self.checked += 1
            with tempfile.NamedTemporaryFile("w", suffix=".sig") as file:
                file.write(signature)
                file.flush()
                found = subprocess.run(
                    ["ssh-keygen", "-Y", "find-principals", "-f", self._allowed, "-s", file.name],
                    capture_output=True, text=True, check=False, timeout=patient(30),
                )  # fmt: skip
                who = found.stdout.split("\n")[0]
                done = subprocess.run(
                    ["ssh-keygen", "-Y", "verify", "-f", self._allowed, "-I", who, "-n", namespace, "-s", file.name],
                    input=content, capture_output=True, check=False, timeout=patient(30),
                )  # fmt: skip
            self._known[key] = bool(who) and done.returncode == 0
        return self._known[key]


class Device:
    """One stand-in."""

    def __init__(self, world: "World", name: str, kind: str, client: mqtt.Client) -> None:
        self.world = world
        self.name = name
        self.kind = kind
        self.client = client
        self.online = kind != "away"
        self.token = secrets.token_hex(8)
        self.serial = -1
        self.model: dict[str, Any] = {"name": "m", "version": "1.0.0", "digest": "0" * 64, "state": "active"}
        self.before: dict[str, Any] = dict(self.model)
        self.installs: list[str] = []
        self.refused = 0
        self.failed: set[str] = set()
        self._wanted: dict[str, Any] | None = None
        self._data = b""
        self._asked = 0

    def publish(self, what: str, document: Any, *, retain: bool = False) -> None:
        """On one of its topics."""
        payload = document if isinstance(document, str) else json.dumps(document)
        self.client.publish(f"edge/{self.name}/{what}", payload, qos=1, retain=retain)

    def announce(self) -> None:
        """What the broker keeps of it."""
        self.publish("status", "online" if self.online else "offline", retain=True)
        self.publish("models", [self.model | {"bundle": "m", "why": None}], retain=True)

    def hear(self, what: str, payload: bytes) -> None:
        """A message on one of its topics, in the thread of the world."""
        if not self.online:
            return
        if what == "ota/ask":
            self.world.later(HEALTH_AFTER_S, self._tell_health)
        elif what == "desired" and payload:
            self.world.check(self._judge, payload)
        elif what == "ota/offer":
            self._offered(json.loads(payload))
        elif what.startswith("ota/chunk/"):
            _, _, transfer, offset = what.split("/")
            self._arrived(transfer, int(offset), payload)

    def _tell_health(self) -> None:
        machine = {"id": f"machine-{self.name}", "uptime_s": 60.0}
        self.publish("health", {"runtime": "1.0.0", "queued": 0, "machine": machine})

    # --- the desired state

    def _judge(self, payload: bytes) -> Callable[[], None]:
        envelope = json.loads(payload)
        good = self.world.signatures.holds(envelope["document"].encode(), envelope["signature"], "edge-desired")
        document = json.loads(envelope["document"])

        def then() -> None:
            if not good or document["device"] != self.name:
                self.refused += 1
            elif document["serial"] > self.serial:
                self.serial = document["serial"]
                self._follow(document)

        return then

    def _follow(self, document: dict[str, Any]) -> None:
        wanted: dict[str, Any] = {"desired": document, "before": dict(self.model)}
        self._report(wanted, "pending")
        if document["digest"] == self.model["digest"]:
            self._report(wanted, self.model["state"].replace("active", "confirmed"))
            return
        if document["digest"] in self.failed:
            self._report(wanted, "failed", "it failed here before")
            return
        if document["digest"] == self.before["digest"]:  # back, without a transfer
            self.model, self.before = dict(self.before), dict(self.model)
            self.publish("models", [self.model | {"bundle": "m", "why": None}], retain=True)
            self._report(wanted, "confirmed")
            return
        wanted |= {
            "transfer": f"depot{document['digest'][:40]}", "size": document["size"], "sha256": document["digest"],
            "signature": document["files"][".sig"], "version": document["version"],
        }  # fmt: skip
        if self._wanted is not None and self._wanted["sha256"] == wanted["sha256"]:
            self._wanted = wanted  # another document of the bundle that is already coming
            return
        self._begin(wanted)
        self._report(wanted, "receiving")

    def _report(self, wanted: dict[str, Any], state: str, why: str | None = None) -> None:
        document = wanted["desired"]
        report = {key: document[key] for key in ("rollout", "serial", "model", "version", "digest")}
        report |= {"state": state, "why": why, "received": len(self._data), "size": document["size"]}
        before = {key: wanted["before"][key] for key in ("version", "digest")}
        self.publish("rollout", report | {"before": before}, retain=True)

    # --- a transfer that a sender offers

    def _offered(self, offer: dict[str, Any]) -> None:
        status = {"transfer": offer["transfer"], "sha256": offer["sha256"]}
        if offer.get("token") != self.token:
            self.publish("ota/status", status | {"state": "greeting", "token": self.token})
        elif offer["sha256"] == self.model["digest"]:
            about = {key: self.model[key] for key in ("version", "digest")}
            self.publish(
                "ota/status", status | about | {"state": "installed", "model": "m", "why": "it is active already"}
            )
        elif self._wanted is not None and self._wanted["sha256"] == offer["sha256"]:
            self._wanted["transfer"] = offer["transfer"]  # from another sender, or from one that began anew
            self._ask()
        elif self._wanted is not None:
            self.publish("ota/status", status | {"state": "refused", "why": "another transfer", "busy": True})
        else:
            self._begin({**offer, "before": dict(self.model)})

    def _begin(self, wanted: dict[str, Any]) -> None:
        self._wanted, self._data = wanted, b""
        self._ask()

    def _ask(self) -> None:
        wanted = self._wanted
        if wanted is None or (self.kind == "hung" and self._data):
            return
        self._asked += 1
        number = self._asked
        count = min(CHUNK, wanted["size"] - len(self._data))
        want = {"transfer": wanted["transfer"], "offset": len(self._data), "bytes": count, "sha256": wanted["sha256"]}
        self.publish("ota/want", want)
        if "desired" not in wanted:
            about = {"transfer": wanted["transfer"], "received": len(self._data), "size": wanted["size"]}
            self.publish("ota/status", about | {"state": "receiving"})

        def again() -> None:
            if self._wanted is not None and self._asked == number:
                self._ask()

        self.world.later(ASK_AGAIN_S, again)

    def _arrived(self, transfer: str, offset: int, data: bytes) -> None:
        wanted = self._wanted
        if wanted is None or transfer != wanted["transfer"] or offset != len(self._data):
            return
        self._data += data
        self._asked += 1
        if len(self._data) < wanted["size"]:
            if self.kind == "slow":
                if "desired" in wanted:
                    self._report(wanted, "receiving")
                self.world.later(SLOW_S, self._ask)
            else:
                self._ask()
        else:
            self.world.check(self._install, wanted, self._data)

    def _install(self, wanted: dict[str, Any], data: bytes) -> Callable[[], None]:
        same = hashlib.sha256(data).hexdigest() == wanted["sha256"]
        good = same and self.world.signatures.holds(data, wanted["signature"], "edge-bundle")

        def then() -> None:
            now, self._wanted, self._data = self._wanted or wanted, None, b""
            if not good:
                self.refused += 1
                self._tell(now, "failed", "expected a trusted signature")
            elif self.kind == "failing" or self.world.is_bad(wanted["sha256"]):
                self.failed.add(wanted["sha256"])
                self._tell(now, "failed", "self-test: other answers")
            else:
                self.installs.append(wanted["sha256"])
                version = str(now.get("version") or self.world.version_of(wanted["sha256"]))
                self.before = dict(self.model)
                self.model = {"name": "m", "version": version, "digest": wanted["sha256"], "state": "probation"}
                self.publish("models", [self.model | {"bundle": "m", "why": None}], retain=True)
                self._tell(now, "probation", None)
                digest = wanted["sha256"]
                self.world.later(PROBATION_S, lambda: self._confirm(now, digest))

        return then

    def _confirm(self, wanted: dict[str, Any], digest: str) -> None:
        if self.model["digest"] == digest:
            self.model["state"] = "active"
            self.publish("models", [self.model | {"bundle": "m", "why": None}], retain=True)
            if "desired" in wanted:
                self._report(wanted, "confirmed")

    def _tell(self, wanted: dict[str, Any], state: str, why: str | None) -> None:
        if "desired" in wanted:
            self._report(wanted, state, why)
        else:
            state = "installed" if state == "probation" else state
            about = {"model": "m", "version": self.model["version"], "digest": wanted["sha256"]}
            about |= {"transfer": wanted["transfer"], "state": state, "why": why or "it is on probation"}
            self.publish("ota/status", about)


class World:
    """All stand-ins, in one thread."""

    def __init__(self, host: str, port: int, allowed: str) -> None:
        self._host, self._port = host, port
        self.signatures = Signatures(allowed)
        self.devices: dict[str, Device] = {}
        self._bad: set[str] = set()
        self._versions: dict[str, str] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._pool = ThreadPoolExecutor(2)
        threading.Thread(target=self._serve, name="stand-ins", daemon=True).start()

    def connect(self, name: str, devices: list[str]) -> mqtt.Client:
        """A connection for some devices: a broker keeps few messages for each.

        Devices that are known have it before the broker sends what it retains for them.
        """
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
        client.max_inflight_messages_set(1000)
        client.on_message = self._heard
        ready = threading.Event()
        topics = [(f"edge/{device}/{topic}", 1) for device in devices for topic in TOPICS]

        def subscribe(*_: object) -> None:
            client.subscribe(topics)

        client.on_connect = subscribe
        client.on_subscribe = lambda *_: ready.set()
        for each in devices:
            if each in self.devices:
                self.devices[each].client = client
        client.connect(self._host, self._port)
        client.loop_start()
        assert ready.wait(patient(20)), "the broker grants no subscription"
        return client

    def _heard(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        _, name, what = message.topic.split("/", 2)
        device = self.devices.get(name)
        if device is not None and device.client is client:  # of one that came back, the connection of its own
            self.later(0.0, lambda: device.hear(what, bytes(message.payload)))

    def later(self, seconds: float, work: Callable[[], None]) -> None:
        """Do something in the thread of the world."""
        with self._wake:
            heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), work))
            self._wake.notify()

    def check(self, work: Callable[..., Callable[[], None]], *arguments: Any) -> None:
        """Do something that takes long, and what it returns in the thread of the world."""
        self._pool.submit(lambda: self.later(0.0, work(*arguments)))

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not self._timers or self._timers[0][0] > time.monotonic():
                    self._wake.wait(max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None)
                work = heapq.heappop(self._timers)[2]
            work()

    def is_bad(self, digest: str) -> bool:
        """A bundle that fails everywhere."""
        return digest in self._bad

    def version_of(self, digest: str) -> str:
        """As the test has named it."""
        return self._versions.get(digest, "?")

    def _add(self, kinds: dict[str, str]) -> None:
        client = self.connect(f"stand-ins-{next(iter(kinds))}", list(kinds))
        for name, kind in kinds.items():
            self.devices[name] = Device(self, name, kind, client)
            self.devices[name].announce()

    def obey(self, command: dict[str, Any]) -> dict[str, Any]:
        """One command of the test."""
        match command["do"]:
            case "add":
                names = list(command["devices"])
                for at in range(0, len(names), 25):
                    self._add({name: command["devices"][name] for name in names[at : at + 25]})
            case "bundle":
                self._versions[command["digest"]] = command["version"]
                if command.get("bad"):
                    self._bad.add(command["digest"])
            case "kinds":
                for name, kind in command["devices"].items():
                    self.devices[name].kind = kind
            case "back":
                for each in self.devices.values():
                    if not each.online:
                        each.online = True
                        self.connect(f"stand-in-{each.name}", [each.name])
                        each.announce()
            case _:
                pass
        table = {
            name: {"digest": each.model["digest"], "version": each.model["version"], "installs": each.installs,
                   "refused": each.refused, "kind": each.kind}
            for name, each in self.devices.items()
        }  # fmt: skip
        return {"devices": table, "checked": self.signatures.checked}


class StandIns:
    """The program, as a test holds it.

    Args:
        host: of the broker.
        port: of the broker.
        allowed: the keys that devices trust.
        within: words before the command, for another namespace.
    """

    def __init__(self, host: str, port: int, allowed: Path, within: tuple[str, ...] = ()) -> None:
        root = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [*within, sys.executable, "-m", "tests.support.stand_ins", host, str(port), str(allowed)],
            cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, do: str, **more: Any) -> dict[str, Any]:
        """A command, and the table of all devices after it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the stand-ins have ended"
        found: dict[str, Any] = json.loads(line)
        return found

    def devices(self) -> dict[str, dict[str, Any]]:
        """What each runs, and what it has installed."""
        found: dict[str, dict[str, Any]] = self("table")["devices"]
        return found

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(patient(10))
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def _main() -> None:
    host, port, allowed = sys.argv[1:4]
    world = World(host, int(port), allowed)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(world.obey(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
