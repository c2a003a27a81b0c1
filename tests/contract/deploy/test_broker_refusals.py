"""The host side over MQTT against a real broker: refusals are named, and only progress renews a deadline."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.errors import CommandError
from edge_runtime.fleet.broker_line import BrokerLine, Login
from edge_runtime.fleet.broker_view import look_at
from edge_runtime.fleet.errors import AwayError, BusyError, RefusedError
from edge_runtime.fleet.inventory import FleetBrokerTable, FleetDevice
from edge_runtime.fleet.mqtt_transport import BundleSender
from tests.conftest import MakeBroker, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient
from tests.unit.fleet.test_rollout import targets

USERS = {"release": "p", "room": "p"}
ROOM = "user room\ntopic readwrite #\n"
MAY_READ = ROOM + "user release\ntopic read edge/#\n"
MAY_BOTH = ROOM + "user release\ntopic readwrite edge/#\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Something to send; no device checks it here."""
    path = builders.classification(name="comfort", version="1.0.0").save(tmp_path / "bundle.onnx")
    builders.signer(tmp_path / "keys").sign(path)
    return path


def _login(broker: Mosquitto, word: str = "p") -> Login:
    return Login(url=broker.url, username="release", password=word)


def _target(broker: Mosquitto, folder: Path) -> FleetDevice:
    (folder / "password").write_text("p")
    table = FleetBrokerTable(url=broker.url, username="release", password_file=str(folder / "password"))
    return msgspec.structs.replace(targets("room")[0], transport="mqtt", broker=table)


def test_an_account_that_may_not_publish_is_told_so_at_once(make_mosquitto: MakeBroker, bundle: Path) -> None:
    """The broker's PUBACK names the topic; the transfer ends, and does not wait for a device that never heard it."""
    broker = make_mosquitto(users=USERS, acl=MAY_READ, extra="max_queued_messages 1000")
    with pytest.raises(RefusedError, match="does not let this account publish to edge/room/ota/offer"):
        BundleSender(_login(broker), "room").send(bundle, _ignore, silence_s=30.0)


def test_an_account_that_may_not_log_in_is_told_so(make_mosquitto: MakeBroker, bundle: Path) -> None:
    """A refused login is a refusal, and not a device that is away."""
    broker = make_mosquitto(users=USERS, acl=MAY_BOTH)
    with pytest.raises(RefusedError, match="refused the login"):
        BundleSender(_login(broker, "wrong"), "room").send(bundle, _ignore, silence_s=30.0)


def test_a_refused_subscription_is_named(make_mosquitto: MakeBroker, tmp_path: Path) -> None:
    """Where a broker says no to a filter, the line that ends the waiting names it."""
    broker = make_mosquitto(users=USERS, acl=MAY_BOTH)
    with BrokerLine(_login(broker), ["room/status"]) as line:
        assert line.hear(10.0) is not None
        reason = type("Reason", (), {"is_failure": True, "__str__": lambda _: "Not authorized"})()
        line._on_subscribe(None, None, 1, [reason], None)
        with pytest.raises(RefusedError, match="subscribe to edge/room/status: Not authorized"):
            line.hear(1.0)
    assert look_at([_target(broker, tmp_path)])["room"].status is None


class Stand:
    """Stands in for a device: answers offers as a test says."""

    def __init__(self, client: Subscriber, answer: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self.offers: list[dict[str, Any]] = []
        self._client = client
        self._answer = answer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        seen = 0
        while not self._ended.wait(0.05):
            messages = self._client.on("edge/room/ota/offer")
            for message in messages[seen:]:
                self.offers.append(message.document)
                answer = self._answer(message.document)
                if answer is not None:
                    document = {"transfer": message.document["transfer"], **answer}
                    self._client.publish("edge/room/ota/status", document)
            seen = len(messages)

    def end(self) -> None:
        """Answer no more."""
        self._ended.set()
        self._thread.join(patient(5))


@pytest.fixture
def stand(make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber) -> Iterator[Callable[..., tuple[Stand, Login]]]:
    """`stand(answer)`: a device that answers so, and how to reach its broker."""
    made: list[Stand] = []

    def make(answer: Callable[[dict[str, Any]], dict[str, Any] | None]) -> tuple[Stand, Login]:
        broker = make_mosquitto()
        made.append(Stand(make_subscriber(broker.port, "edge/#"), answer))
        return made[-1], Login(url=broker.url)

    yield make
    for each in made:
        each.end()


def test_progress_that_is_none_does_not_renew_the_deadline(
    stand: Callable[..., tuple[Stand, Login]], bundle: Path
) -> None:
    """A device that repeats `receiving` with the same bytes for ever is given up; its words alone are no progress."""
    device, login = stand(lambda offer: {"state": "receiving", "received": 7, "size": offer["size"]})
    chatter = threading.Event()

    def repeat() -> None:
        while not chatter.wait(0.2):
            for offer in device.offers[-1:]:
                device._client.publish(
                    "edge/room/ota/status", {"transfer": offer["transfer"], "state": "receiving", "received": 7}
                )

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    with pytest.raises(AwayError, match="has not moved for 2 s, at 7 of"):
        BundleSender(login, "room").send(bundle, _ignore, silence_s=2.0)
    chatter.set()
    thread.join(patient(5))


def test_a_refusal_that_passes_is_waited_for(
    stand: Callable[..., tuple[Stand, Login]], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`busy` from another transfer is no failure: the offer is repeated until the device takes it."""
    monkeypatch.setattr("edge_runtime.fleet.mqtt_transport.OFFER_AGAIN_S", 0.1)
    count = iter(range(100))

    def answer(_offer: dict[str, Any]) -> dict[str, Any]:
        if next(count) < 3:
            return {"state": "refused", "why": "occupied", "busy": True}
        return {"state": "installed", "model": "comfort", "version": "1.0.0"}

    _, login = stand(answer)
    assert BundleSender(login, "room").send(bundle, _ignore, silence_s=20.0)["state"] == "installed"
    _, login = stand(lambda _: {"state": "refused", "why": "another transfer is under way, 3 % of it are here"})
    with pytest.raises(BusyError, match="3 % of it are here"):
        BundleSender(login, "room").send(bundle, _ignore, silence_s=20.0, busy_s=0.5)
    _, login = stand(lambda _: {"state": "refused", "why": "expected a version of comfort above 2.0.0"})
    with pytest.raises(CommandError, match=r"above 2\.0\.0"):
        BundleSender(login, "room").send(bundle, _ignore, silence_s=20.0)


def test_two_devices_of_one_id_are_found_by_their_tokens(
    stand: Callable[..., tuple[Stand, Login]], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token that comes back after another one is of a second device; a restart alone is none."""
    monkeypatch.setattr("edge_runtime.fleet.mqtt_transport.OFFER_AGAIN_S", 0.1)
    tokens = iter(["a", "b", "a", "b"] * 5)
    _, login = stand(lambda _: {"state": "greeting", "token": next(tokens)})
    with pytest.raises(RefusedError, match="two devices answer as room"):
        BundleSender(login, "room").send(bundle, _ignore, silence_s=20.0)
    restarted = iter(["a", "b"])

    def answer(_offer: dict[str, Any]) -> dict[str, Any]:
        token = next(restarted, None)
        return {"state": "installed"} if token is None else {"state": "greeting", "token": token}

    _, login = stand(answer)
    assert BundleSender(login, "room").send(bundle, _ignore, silence_s=20.0)["state"] == "installed"


def test_twins_are_named_by_the_machines_that_answer(
    make_mosquitto: MakeBroker, make_subscriber: MakeSubscriber, tmp_path: Path
) -> None:
    """Health of one device id from two machines is a cloned card, which `flash` refuses."""
    broker = make_mosquitto(users=USERS, acl=MAY_BOTH)
    client = make_subscriber(broker.port, "edge/room/ota/ask", login=("room", "p"))

    def answer() -> None:
        client.wait_until(lambda _: client.on("edge/room/ota/ask"), "the question", 20.0)
        for machine in ("1111", "2222"):
            client.publish("edge/room/health", {"machine": {"id": machine}})
        client.publish("edge/room/status", b"online")
        client.publish("edge/room/models", b"[]")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    known = look_at([_target(broker, tmp_path)], health=True)["room"]
    thread.join(patient(20))
    assert known.machines == {"1111", "2222"}
    with pytest.raises(RefusedError, match="two machines answer as room"):
        known.require_single("room")


def _ignore(_done: int, _total: int) -> None:
    """Show nothing."""
