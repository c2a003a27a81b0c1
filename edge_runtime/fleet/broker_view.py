"""The retained documents of devices, and their answers on request: one subscription for one device or for all.

Guarantee: many devices take one connection and three wildcard subscriptions. The call ends `HEALTH_S` after the request
at the latest, or when every device has answered; an unstable link does not extend it beyond `CONNECT_S`. Two devices
with the same id are detected by their machine ids. Weak point: an account without permission for wildcards needs a
subscription for each device, which `look_at` makes when the broker refuses.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_line import CONNECTED, BrokerLine, Heard, Login
from edge_runtime.fleet.errors import RefusedError
from edge_runtime.fleet.inventory import FleetBrokerTable, FleetDevice
from edge_runtime.fleet.listing import Listed

CONNECT_S = 30.0
KEPT_S = 2.0  # for the retained documents of a device, after the subscription is granted
HEALTH_S = 10.0  # for its health, which it publishes a second after the request
SETTLED_S = 0.3  # without a message, the broker has sent what it retains
QUIET_S = 4.0  # of nothing at all, where it only decides who goes first
_TOPICS = ("status", "models", "health")
_ACCURACY, _DRIFT = "accuracy/", "drift/"


class Known(msgspec.Struct):
    """The facts about a device.

    Attributes:
        status: the text of its status.
        models: the document of its models.
        health: its newest health, if requested.
        machines: the machine ids in health documents.
        rollout: the document of its rollout.
        accuracy: the accuracy document of each model, by its name, if requested.
        drift: the drift document of each model, likewise.
    """

    status: str | None = None
    models: list[dict[str, Any]] | None = None
    health: dict[str, Any] | None = None
    machines: set[str] = set()
    rollout: dict[str, Any] | None = None
    accuracy: dict[str, Any] = {}
    drift: dict[str, Any] = {}

    def is_enough(self, *, health: bool) -> bool:
        """Whether all requested documents have arrived."""
        if self.status == "offline":
            return True
        return None not in [self.status, self.models, *([self.health] if health else [])]

    @property
    def is_online(self) -> bool:
        """Whether the broker does not report it as offline."""
        return self.status != "offline"

    @property
    def rank(self) -> int:
        """The order of work: devices that have just answered, those that may be online, and those that are offline."""
        return 0 if self.health is not None else 1 if self.is_online else 2

    def listing(self) -> list[Listed]:
        """Its models as `models list --json` has them: by the bundle's name."""
        keys = ("version", "digest", "state")
        found = []
        for each in self.models or []:
            if all(key in each for key in keys):
                name = each.get("bundle") or each.get("name")
                found.append({"name": name, **{key: each[key] for key in keys}})
                if each.get("why"):
                    found[-1]["why"] = each["why"]
        return found

    def take(self, what: str, payload: bytes) -> None:
        """Note one message of the device."""
        if what == "status":
            self.status = payload.decode(errors="replace")
        elif what == "models":
            self.models = _decoded(payload, list[dict[str, Any]])
        elif what.startswith(_ACCURACY):
            self.accuracy[what.removeprefix(_ACCURACY)] = _decoded(payload, dict[str, Any])
        elif what.startswith(_DRIFT):
            self.drift[what.removeprefix(_DRIFT)] = _decoded(payload, dict[str, Any])
        elif what == "rollout":
            self.rollout = _decoded(payload, dict[str, Any])
        elif what == "health":
            self.health = _decoded(payload, dict[str, Any])
            machine = (self.health or {}).get("machine")
            identity = machine.get("id") if isinstance(machine, dict) else None
            if isinstance(identity, str):
                self.machines.add(identity)

    def require_single(self, device: str) -> None:
        """Refuse two devices with the same id.

        Raises:
            RefusedError: health came from two machines.
        """
        if len(self.machines) > 1:
            raise RefusedError(
                f"two machines answer as {device} ({', '.join(sorted(self.machines))}): give each its own id in "
                "[device] (was a card cloned?)"
            )


def login(target: FleetDevice) -> Login:
    """How to reach the broker of the inventory.

    Raises:
        CommandError: there is none in it, or its password cannot be read.
    """
    if target.broker is None:
        raise CommandError("it is reached over MQTT, and the inventory has no [broker]: write its url there")
    return broker_login(target.broker)


def broker_login(broker: FleetBrokerTable) -> Login:
    """How to reach a broker.

    Raises:
        CommandError: its password cannot be read.
    """
    password = None
    if broker.password_file is not None:
        try:
            password = Path(broker.password_file).read_text(encoding="utf-8").partition("\n")[0]
        except (OSError, ValueError) as error:
            raise CommandError(f"{broker.password_file}: the broker's password cannot be read: {error}") from error
    return Login(url=broker.url, username=broker.username, password=password, ca_file=broker.ca_file)


def look_at(
    targets: Sequence[FleetDevice], *, health: bool = False, kept: bool = False, accuracy: bool = False
) -> dict[str, Known]:
    """The retained documents of devices by name, and with `health` their answers to a request for health.

    With `kept` also their last rollout reports; an account that may not request health gets none. With `accuracy` also
    the accuracy and drift of their models.

    Raises:
        AwayError: the broker cannot be reached.
        RefusedError: it refuses the subscription.
    """
    topics = [*(_TOPICS if health else _TOPICS[:2]), *(["rollout"] if kept else [])]
    topics += [f"{_ACCURACY}+", f"{_DRIFT}+"] if accuracy else []
    quiet_s = QUIET_S if kept else CONNECT_S
    broker = login(targets[0])
    if len(targets) > 1:
        try:
            return _listen(broker, targets, [f"+/{topic}" for topic in topics], health=health, quiet_s=quiet_s)
        except RefusedError:
            if health and kept:
                return look_at(targets, kept=True)
            return {target.name: look_at([target], health=health, accuracy=accuracy)[target.name] for target in targets}
    try:
        return _listen(
            broker, targets, [f"{targets[0].name}/{topic}" for topic in topics], health=health, quiet_s=quiet_s
        )
    except RefusedError:
        if health and kept:
            return look_at(targets, kept=True)
        raise


def _listen(
    broker: Login, targets: Sequence[FleetDevice], filters: Sequence[str], *, health: bool, quiet_s: float
) -> dict[str, Known]:
    known = {target.name: Known() for target in targets}
    open_ones = set(known)
    is_many = len(targets) > 1
    with BrokerLine(broker, filters, qos=0 if is_many else 1) as line:
        deadline = time.monotonic() + CONNECT_S
        is_asked, is_read_again = False, not is_many
        while open_ones and (left := deadline - time.monotonic()) > 0:
            heard = line.hear(min(left, SETTLED_S if is_asked and not is_read_again else quiet_s))
            if heard is None and is_asked and not is_read_again:
                is_read_again = True  # a broker drops what comes too fast: ask for what is missing, a few at a time
                line.read_again(_missing(known))
            elif heard is None:
                break
            elif heard.topic == CONNECTED:
                if health:  # again after each connection: the question may have been lost with the last one
                    _ask_for_health(line, open_ones)
                if not is_asked:  # and only once more time, however often the link returns
                    is_asked = True
                    deadline = time.monotonic() + (HEALTH_S if health else KEPT_S)
            else:
                _note(known, open_ones, heard, health=health)
    return known


def _ask_for_health(line: BrokerLine, names: Iterable[str]) -> None:
    """Ask devices for their health; the acknowledgement of the first one shows whether the account may ask."""
    for number, name in enumerate(names):
        line.publish(f"{name}/ota/ask", b"", qos=1 if number == 0 else 0)


def _missing(known: Mapping[str, Known]) -> list[str]:
    """The topics of which nothing is known, though the broker retains them for every device."""
    return [
        f"{name}/{topic}"
        for name, found in known.items()
        for topic, value in (("status", found.status), ("models", found.models))
        if value is None
    ]


def _note(known: dict[str, Known], open_ones: set[str], heard: Heard, *, health: bool) -> None:
    device, _, what = heard.topic.partition("/")
    found = known.get(device)
    if found is None:
        return  # not in the inventory
    found.take(what, heard.payload)
    if found.is_enough(health=health):
        open_ones.discard(device)


def _decoded(payload: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None  # no document of ours
