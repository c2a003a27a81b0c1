"""Two brokers in order of preference: the first one is killed and comes back, and nothing is lost."""

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeBroker, MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import CertificateAuthority, Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import climate_device
from tests.support.disk_faults import LONG, report
from tests.support.load import answered, endless_readings
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system

WINDOW = 20
ROUNDS = 60 if LONG else 3
ARRIVED = re.compile(r"Received PUBLISH from edge-room .*edge/room/comfort/")
CLIENT = "as edge-room"  # how mosquitto's log names the device


@pytest.fixture
def comfort(tmp_path: Path) -> Path:
    """A bundle of single readings."""
    return builders.classification(name="comfort").save(tmp_path / "comfort.onnx")


@dataclass
class Rig:
    """A device whose readings come from one broker, and whose predictions go to the first of two that answers."""

    first: Mosquitto
    second: Mosquitto
    daemon: Daemon
    sensors: Subscriber

    def say(self, number: int) -> None:
        """One reading."""
        self.sensors.publish("sensors/a/climate", {"temperature": 1.0, "humidity": 2.0, "seq": number})


@pytest.fixture
def make_rig(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> Callable[..., Rig]:
    """`make_rig("return_after = 1")`: the brokers, and a daemon that is not started yet."""

    def make(upstream: str = "", start: bool = True, **options: Any) -> Rig:
        first, second = make_mosquitto(start=start, **options), make_mosquitto(**options)
        field = make_mosquitto()
        text = climate_device(
            first,
            comfort,
            upstream=f'urls = ["{second.url}"]\nmax_inflight = {WINDOW}\n{upstream}',
            source=f'url = "{field.url}"',
        )
        return Rig(first, second, make_daemon(text), make_subscriber(field.port))

    return make


def _broker_in_use(listener: Subscriber) -> Any:
    """What the device's newest health says, as heard on one broker."""
    found = listener.on("edge/room/health")
    return found[-1].document["broker"] if found else {"url": None}


def _assert_in_order(listener: Subscriber) -> None:
    """First answers of a key are in the order of its readings."""
    for key in "abc":
        numbers = [int(m.document["id"].rpartition("/")[2]) for m in listener.on(f"edge/room/comfort/{key}")]
        firsts = list(dict.fromkeys(numbers))
        assert firsts == sorted(firsts), f"key {key} out of order"


def test_the_first_broker_is_killed_and_comes_back(
    make_rig: Callable[..., Rig], make_subscriber: MakeSubscriber
) -> None:
    """Under load everything goes to the second one and back again; repeats are at most what was in flight."""
    rig = make_rig("return_after = 4")
    # at QoS 0, or the broker that is killed would take along what it has acknowledged to the device and kept for us
    first, second = make_subscriber(rig.first.port, "edge/#", qos=0), make_subscriber(rig.second.port, "edge/#")
    rig.daemon.start()
    first.wait_for_text("edge/room/status", "online")
    with endless_readings(rig.sensors, 0.005) as sent:
        first.wait_for(100, "edge/room/comfort/")
        rig.second.pause()  # for a moment no broker takes predictions, so that some have to wait
        rig.first.kill()
        before = len(sent)
        wait_until(lambda: len(sent) > before + 30, "readings meanwhile")
        rig.second.resume()
        second.wait_for_text("edge/room/status", "online", 60.0)
        second.wait_for(100, "edge/room/comfort/")
        wait_until(lambda: _broker_in_use(second)["fallback"], "health to name the broker in use")
        assert _broker_in_use(second) == {"url": rig.second.url, "fallback": True, "failovers": 1, "returns": 0}
        rig.first.start()
        again = make_subscriber(rig.first.port, "edge/#")
        again.wait_for(100, "edge/room/comfort/", 60.0)
        second.wait_for_text("edge/room/status", "offline")
        again.wait_for_text("edge/room/status", "online")
        wait_until(lambda: _broker_in_use(again)["returns"] == 1, "health to tell of the return")
    listeners = (first, second, again)

    def total() -> Counter[int]:
        return sum((answered(each) for each in listeners), Counter[int]())

    wait_until(lambda: set(sent) <= set(total()), lambda: f"{sorted(set(sent) - set(total()))[:20]}", 60.0)
    # `first` hears the broker again after its return, as `again` does: what it heard of it is counted once
    heard = answered(second) + (answered(first) | answered(again))
    assert heard.total() - len(heard) <= WINDOW, "a kill repeats what was in flight, the return nothing"
    for each in (second, again):
        _assert_in_order(each)
    delayed = {int(m.document["seq"]) for m in second.on("edge/room/comfort/a") if m.document.get("delayed")}
    assert delayed, "what waited for the second broker says so"
    assert "fallback" in rig.daemon.log
    assert rig.daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(3600 if LONG else 280)
def test_brokers_that_go_and_come_in_any_order_lose_nothing(
    make_rig: Callable[..., Rig], make_subscriber: MakeSubscriber
) -> None:
    """One of them, the other, or both at once, for moments or longer: every reading is answered by one or the other."""
    rng = random.Random(20261127)
    rig = make_rig("return_after = 0.3", persistence=True)
    brokers = (rig.first, rig.second)
    listeners = [make_subscriber(broker.port, "edge/room/comfort/+", client_id="listener") for broker in brokers]
    rig.daemon.start()
    rig.daemon.wait_for_log("online")

    def total() -> Counter[int]:
        return sum((answered(each) for each in listeners), Counter[int]())

    with endless_readings(rig.sensors, 0.005) as sent:
        for _ in range(ROUNDS):
            going = rng.choice((brokers[:1], brokers[:1], brokers[1:], brokers))
            for broker in going:
                broker.stop()  # in good order: what it has acknowledged is the listener's, and not to be lost by it
            time.sleep(rng.uniform(0.0, 2.0))  # the random moment is the fault itself
            for broker in rng.sample(going, len(going)):
                broker.start()
            time.sleep(rng.uniform(0.0, 2.0))
    wait_until(
        lambda: set(sent) <= set(total()),
        lambda: f"{sorted(set(sent) - set(total()))[:20]} of {len(sent)}; {rig.daemon.log[-1500:]}",
        120.0,
    )
    # what the device sent, as the brokers saw it: they themselves repeat to a listener what it had not acknowledged
    arrived = sum(len(ARRIVED.findall(broker.log)) for broker in brokers)
    repeats, changes = arrived - len(sent), sum(broker.log.count(CLIENT) for broker in brokers)
    report(f"{ROUNDS} rounds of two brokers, {len(sent)} readings, 0 lost, {repeats} repeats in {changes} connections")
    assert repeats <= WINDOW * changes
    assert rig.daemon.stop() == 0


def test_a_first_broker_that_is_down_at_the_start_is_passed_over(
    make_rig: Callable[..., Rig], make_subscriber: MakeSubscriber
) -> None:
    """The second one serves, the state says why, and the first one is found when it comes."""
    rig = make_rig("return_after = 0", start=False)
    second = make_subscriber(rig.second.port, "edge/#")
    rig.daemon.start()
    second.wait_for_text("edge/room/status", "online", 60.0)
    rig.say(1)
    assert second.wait_for(1, "edge/room/comfort/")[0].document["seq"] == 1
    state = second.wait_for(1, "edge/room/health")[-1].document["link"]["upstream"]
    assert state.startswith(f"connected to {rig.second.url} (fallback; {rig.first.url}: Connection refused; next")
    rig.first.start()
    first = make_subscriber(rig.first.port, "edge/#")
    first.wait_for_text("edge/room/status", "online", 60.0)
    rig.say(2)
    assert first.wait_for(1, "edge/room/comfort/")[0].document["seq"] == 2
    assert rig.daemon.stop() == 0


def test_a_first_broker_that_breaks_again_and_again_does_not_take_over(
    make_rig: Callable[..., Rig], make_subscriber: MakeSubscriber
) -> None:
    """Before predictions go back to it, it has to have been there for `return_after` without a break."""
    rig = make_rig("return_after = 60")
    second = make_subscriber(rig.second.port, "edge/#")
    rig.daemon.start()
    rig.daemon.wait_for_log(f"connected to {rig.first.url}")
    rig.first.kill()
    second.wait_for_text("edge/room/status", "online", 60.0)
    for turn in itertools.count(1):
        rig.first.start()
        wait_until(lambda turn=turn: rig.first.log.count(CLIENT) > turn, "the device to look for it", 30.0)  # type: ignore[misc]
        rig.say(turn)
        second.wait_for(turn, "edge/room/comfort/")
        if turn == 3:
            break
        rig.first.kill()
    assert _broker_in_use(second)["fallback"]
    rig.second.kill()  # now the first one is all there is, and no time is lost with waiting
    first = make_subscriber(rig.first.port, "edge/#")
    first.wait_for_text("edge/room/status", "online", 60.0)
    assert rig.daemon.stop() == 0


def test_a_login_that_the_first_broker_refuses_makes_the_second_serve(
    make_mosquitto: MakeBroker, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, comfort: Path
) -> None:
    """Refused is as good as gone: predictions flow, and the state names the refusal. `urls` does without `url`."""
    strict, open_ = make_mosquitto(users={"another": "user"}), make_mosquitto()
    text = climate_device(strict, comfort).replace(
        f'url = "{strict.url}"', f'urls = ["{strict.url}", "{open_.url}"]\nusername = "room"', 1
    )
    daemon = make_daemon(text).start()
    listener = make_subscriber(open_.port, "edge/#")
    listener.wait_for_text("edge/room/status", "online", 60.0)
    wait_until(
        lambda: "refused the login" in listener.wait_for(1, "edge/room/health")[-1].document["link"]["upstream"],
        "the refusal to be reported",
    )
    listener.publish("sensors/a/climate", {"temperature": 1.0, "humidity": 2.0})
    listener.wait_for(1, "edge/room/comfort/")
    assert daemon.stop() == 0


def test_the_certificate_of_every_broker_is_verified(
    make_mosquitto: MakeBroker,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    authority: CertificateAuthority,
    comfort: Path,
    tmp_path: Path,
) -> None:
    """A fallback that a stranger vouches for is not spoken to, however long the first one is away."""
    trusted = make_mosquitto(tls=authority)
    strange = make_mosquitto(tls=CertificateAuthority(tmp_path / "stranger", "stranger"))
    text = climate_device(
        trusted, comfort, upstream=f'urls = ["{strange.url}"]\nca_file = "{authority.certificate}"\nreturn_after = 0'
    )
    daemon = make_daemon(text).start()
    daemon.wait_for_log(f"connected to {trusted.url}")
    trusted.kill()
    daemon.wait_for_log(f"{strange.url}: the broker's certificate is not trusted", 60.0)
    trusted.start()
    listener = make_subscriber(trusted.port, "edge/#", ca_file=authority.certificate)
    listener.wait_for_text("edge/room/status", "online", 60.0)
    assert CLIENT not in strange.log
    assert daemon.stop() == 0
