"""The work of the fleet's commands on a device that only its broker reaches: the same outcomes and rows as over ssh.

What the device keeps retained (`status`, `models`) is looked at first, so that one that is away is named at once. Its
word is then taken over the same topics that `docs/ota.md` describes. Nothing here trusts the broker: bundles and orders
to go back are signed, and the device checks them.
"""

import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError, EdgeError, TransientError
from edge_runtime.fleet.flash import SERVING, Cargo, Wishes, details, words
from edge_runtime.fleet.inventory import Target
from edge_runtime.fleet.mqtt_transport import Line, Login, MqttTransport
from edge_runtime.fleet.overview import Row
from edge_runtime.fleet.rollout import Outcome, Watcher
from edge_runtime.store.ota_parts import ROLLBACK_NAMESPACE

CONNECT_S = 30.0
KEPT_S = 2.0  # for what the broker keeps of a device, once the subscription is granted
HEALTH_S = 10.0  # for its health, which it publishes a second after it is asked
AFTER_S = 15.0  # for the daemon to take a new bundle up; it looks every second


class Known(msgspec.Struct):
    """What is known of a device: the text of its status, its models, and its health where it was waited for."""

    status: str | None = None
    models: list[dict[str, Any]] | None = None
    health: dict[str, Any] | None = None


def login(target: Target) -> Login:
    """How to reach the broker of the inventory.

    Raises:
        CommandError: there is none in it, or its password cannot be read.
    """
    if target.broker is None:
        raise CommandError("it is reached over MQTT, and the inventory has no [broker]: write its url there")
    password = None
    if target.broker.password_file is not None:
        try:
            password = Path(target.broker.password_file).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, ValueError) as error:
            raise CommandError(
                f"{target.broker.password_file}: the broker's password cannot be read: {error}"
            ) from error
    return Login(
        url=target.broker.url, username=target.broker.username, password=password, ca_file=target.broker.ca_file
    )


def ask(target: Target, *, health: bool = False) -> Known:
    """What the broker keeps of a device, and with `health` what the device says of itself.

    Raises:
        TransientError: the broker cannot be reached, or the device is offline.
    """
    known = Known()
    with Line(login(target), target.name, ("status", "models", "health")) as line:
        deadline = time.monotonic() + CONNECT_S
        while (left := deadline - time.monotonic()) > 0 and not _is_enough(known, health=health):
            heard = line.hear(left)
            if heard is None:
                break
            what, payload = heard
            if what == "status":
                known.status = payload.decode(errors="replace")
                if known.status == "offline":
                    break
            elif what == "models":
                known.models = _decoded(payload, list[dict[str, Any]])
            elif what == "health":
                known.health = _decoded(payload, dict[str, Any])
            elif what == "connected":
                deadline = time.monotonic() + (HEALTH_S if health else KEPT_S)
                if health:
                    line.say("ota/ask", b"")
    if known.status == "offline":
        raise TransientError("it is offline, says the broker")
    return known


def _is_enough(known: Known, *, health: bool) -> bool:
    wanted = [known.status, known.models, *([known.health] if health else [])]
    return None not in wanted


def _decoded(payload: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError):
        return None  # no word of ours


def serving(known: Known, name: str) -> dict[str, Any] | None:
    """The bundle of a name that a device runs, in the form of `models list --json`."""
    return next((each for each in listing(known) if each["name"] == name and each["state"] in SERVING), None)


def listing(known: Known) -> list[dict[str, Any]]:
    """Its models as `models list --json` has them: by the bundle's name."""
    keys = ("version", "digest", "state")
    found = []
    for each in known.models or []:
        if all(key in each for key in keys):
            found.append({"name": each.get("bundle", each.get("name")), **{key: each[key] for key in keys}})
            if each.get("why"):
                found[-1]["why"] = each["why"]
    return found


def flash(target: Target, watcher: Watcher, cargo: Cargo, wishes: Wishes) -> Outcome:
    """Brings a bundle to one device and makes it active there.

    Raises:
        TransientError: the broker or the device does not answer.
        CommandError: it refuses; the text is its own reason.
    """
    if (
        wishes.unsigned
        or wishes.retry_rejected
        or wishes.max_latency_ms is not None
        or wishes.max_memory_mib is not None
    ):
        raise CommandError("over MQTT only signed bundles are taken, by the device's own limits: such wishes need ssh")
    watcher.step(target.name, "asking what it runs")
    before = serving(ask(target), cargo.name)
    if before is not None and before["digest"] == cargo.digest and not wishes.waits:
        return Outcome(target.name, "unchanged", f"{words(before)} already", details=details(before, before))
    watcher.step(target.name, f"sending {cargo.path.stat().st_size} bytes over MQTT")
    mode = "shadow" if wishes.shadow else "stage" if wishes.stage else "active"
    done = MqttTransport(login(target), target.name).send(cargo.path, partial(watcher.bytes, target.name), mode=mode)
    text = f"{done.get('model')} {done.get('version')} ({str(done.get('digest'))[:12]}): {done.get('why')}"
    return Outcome(target.name, "done", text, details=details(before, None))


def rollback(target: Target, watcher: Watcher, name: str | None, key: Path | None) -> Outcome:
    """Takes one device back to the bundle before the active one, by an order that `key` signs.

    Raises:
        TransientError: the broker or the device does not answer.
        CommandError: there is no key, or nothing to go back to.
    """
    if key is None:
        raise CommandError("over MQTT an order to go back must be signed: name the key with --sign")
    watcher.step(target.name, "asking what it runs")
    running = [each for each in listing(ask(target)) if each["state"] in SERVING and name in {None, each["name"]}]
    if len(running) != 1:
        known = ", ".join(each["name"] for each in running) or "none"
        raise CommandError(f"expected one model, found {len(running)} ({known}): name one with --model")
    before = running[0]
    watcher.step(target.name, f"going back from {words(before)}")
    transport = MqttTransport(login(target), target.name)
    done = transport.roll_back(before["name"], before["digest"], partial(_sign, key))
    text = f"{done.get('model')} {done.get('version')} ({str(done.get('digest'))[:12]}): {done.get('why')}"
    return Outcome(target.name, "done", text, details=details(before, None))


def confirm(target: Target, cargo: Cargo) -> str | None:
    """What is wrong with a device after it has run the new bundle for a while; None when nothing is."""
    deadline = time.monotonic() + AFTER_S
    while True:
        found = [each for each in listing(ask(target)) if each["name"] == cargo.name]
        if any(each["digest"] == cargo.digest and each["state"] in SERVING for each in found):
            return None
        if time.monotonic() > deadline or any(each.get("why") for each in found):
            why = "; ".join(str(each["why"]) for each in found if each.get("why"))
            return f"{cargo.name} {cargo.version} is not active: {why or 'the daemon has not taken it up'}"
        time.sleep(1.0)


def look(target: Target, watcher: Watcher) -> Outcome:
    """Asks one device; never raises, since being out of reach is an answer too."""
    watcher.step(target.name, "asking over MQTT")
    row = Row(name=target.name, group=target.group, kind=target.kind)
    try:
        known = ask(target, health=True)
        row.reachable = known.status == "online"
        row.models = listing(known)
        _fill(row, known)
    except EdgeError as error:
        row.why = " ".join(str(error).split())
    return Outcome(target.name, "failed" if row.why else "done", row.why, details={"row": row})


def _fill(row: Row, known: Known) -> None:
    if known.status is None:
        row.why = "the broker knows nothing of it: was it ever online?"
    elif known.health is None:
        row.why = "it does not tell its health: is over_mqtt switched on?"
    else:
        health = known.health
        machine = health.get("machine") or {}
        row.runtime, row.service = str(health.get("runtime", "")), "active"
        row.queued, row.last_prediction = health.get("queued"), health.get("last_prediction")
        row.uptime_s, row.temperature_c = machine.get("uptime_s"), machine.get("temperature_c")


def _sign(key: Path, text: bytes) -> str:
    """The signature of an order.

    Raises:
        CommandError: the key cannot be used.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "order"
        path.write_bytes(text)
        command = ["ssh-keygen", "-Y", "sign", "-q", "-f", str(key), "-n", ROLLBACK_NAMESPACE, str(path)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandError(f"{key}: ssh-keygen does not sign: {error}") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise CommandError(f"{key}: ssh-keygen does not sign: {lines[-1] if lines else done.returncode}")
        return path.with_suffix(".sig").read_text()
