"""Which of several brokers serves, with connections that do what a test says."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from edge_runtime.mqtt import failover
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.failover import Failover
from edge_runtime.mqtt.messages import Will
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.waiting import wait_until

WILL = Will("edge/d/status", b"offline")


@dataclass
class _Link:
    """Stands in for a connection to one broker."""

    url: str
    connected: bool = False
    ready: bool = False
    window: int = 20
    in_flight: int = 0
    state: str = "connecting"
    stopped: bool = False
    sent: list[bytes] = field(default_factory=list)
    on_change: list[Callable[[], None]] = field(default_factory=list)

    def subscribe(self, *_: object, **__: object) -> None:
        """Every link gets every subscription; see `test_one_answer` and the system tests."""

    def start(self) -> None:
        """Nothing happens until the test says so."""

    def stop(self) -> None:
        self.connected = self.ready = False
        self.stopped = True

    def publish(self, _topic: str, payload: bytes, **_: object) -> bool:
        self.sent.append(payload)
        return self.connected

    def _say(self) -> None:
        for listener in list(self.on_change):
            listener()

    def up(self) -> None:
        """The broker has accepted us."""
        self.connected = self.ready = True
        self.state = f"connected to {self.url}"
        self._say()

    def down(self) -> None:
        """It was lost, or an attempt has failed."""
        self.connected = self.ready = False
        self.state = f"{self.url}: gone"
        self._say()


class Bench:
    """A failover over brokers a, b, c, and what its user saw."""

    def __init__(self, return_after: float = 0.0) -> None:
        self.loop = Loop()
        self.made: dict[str, _Link] = {}
        self.counters = Counters()
        self.link = Failover(
            ("a", "b", "c"),
            self._make,
            name="upstream",
            return_after=return_after,
            loop=self.loop,
            counters=self.counters,
            will=WILL,
        )
        self.seen: list[str | None] = []
        self.link.on_change.append(lambda: self.seen.append(self.link.url))
        self.link.start()

    def _make(self, url: str) -> Connection:
        self.made[url] = _Link(url)
        return cast("Connection", self.made[url])

    def tried(self) -> str:
        """The brokers that are tried or connected."""
        return "".join(url for url, link in self.made.items() if not link.stopped)

    def until(self, condition: Callable[[], Any]) -> None:
        """Serve the loop."""
        wait_until(lambda: self._served(condition), "the condition")

    def _served(self, condition: Callable[[], Any]) -> bool:
        self.loop.run_once(0.01)
        return bool(condition())

    def publish(self, payload: bytes = b"x") -> bool:
        """Send."""
        return self.link.publish("t", payload, qos=1, outcome=None)


@pytest.fixture
def bench() -> Iterator[Bench]:
    """With no pause before a return."""
    made = Bench()
    yield made
    made.loop.close()


def test_the_next_broker_is_tried_when_one_fails_and_the_better_ones_all_the_while(bench: Bench) -> None:
    """One after the other; the first that accepts serves, and those behind it are left."""
    assert bench.tried() == "a"
    assert not bench.publish()
    bench.made["a"].down()
    assert bench.tried() == "ab"
    bench.made["a"].down()
    assert bench.tried() == "ab"
    bench.made["b"].down()
    assert bench.tried() == "abc"
    assert bench.link.state == "a: gone; b: gone; connecting"
    bench.made["b"].up()
    assert bench.tried() == "ab"
    assert (bench.link.url, bench.link.is_fallback, bench.link.ready) == ("b", True, True)
    assert bench.link.state == "connected to b (fallback; a: gone)"
    assert bench.publish(b"to b")
    assert bench.made["b"].sent == [b"to b"]
    assert bench.counters.counts == {"failovers": 1}


def test_a_settled_link_that_breaks_gets_one_attempt_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that restarts quickly does not send its devices away; one that does not, does."""
    monkeypatch.setattr(failover, "SETTLED_S", 0.0)
    bench.made["a"].up()
    bench.made["a"].down()
    assert bench.tried() == "a"
    assert bench.link.url is None
    bench.made["a"].down()
    assert bench.tried() == "ab"


def test_a_link_that_had_not_settled_sends_us_on_at_once(bench: Bench) -> None:
    """A broker that accepts us and throws us out, for ever, would hold everything up."""
    bench.made["a"].up()
    bench.made["a"].down()
    assert bench.tried() == "ab"


def test_users_see_a_gap_between_two_brokers(bench: Bench) -> None:
    """What was in flight is given back before the next broker is spoken to."""
    bench.made["a"].down()
    bench.made["b"].up()
    bench.seen.clear()
    bench.made["a"].up()
    bench.until(lambda: bench.link.url == "a")
    assert [each for each in bench.seen if each != "b"][:2] == [None, "a"]
    assert bench.tried() == "a"
    assert bench.made["b"].sent == [WILL.payload], "who listens there learns that we left"
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


def test_a_return_waits_for_what_is_in_flight(bench: Bench) -> None:
    """Nothing new is sent meanwhile, so that the return repeats nothing."""
    bench.made["a"].down()
    bench.made["b"].up()
    bench.made["b"].in_flight = 3
    bench.made["a"].up()
    bench.until(lambda: not bench.publish())
    assert bench.link.url == "b"
    bench.made["b"].in_flight = 0
    bench.until(lambda: bench.link.url == "a")
    assert bench.publish()


def test_a_return_does_not_wait_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that answers nothing any more is left all the same; its messages are sent again."""
    monkeypatch.setattr(failover, "HANDOVER_S", 0.1)
    bench.made["a"].down()
    bench.made["b"].up()
    bench.made["b"].in_flight = 3
    bench.made["a"].up()
    bench.until(lambda: bench.link.url == "a")


def test_a_better_broker_that_breaks_before_the_return_changes_nothing(bench: Bench) -> None:
    """While b still has something in flight a goes again: b serves on."""
    bench.made["a"].down()
    bench.made["b"].up()
    bench.made["b"].in_flight = 1
    bench.made["a"].up()
    bench.until(lambda: not bench.publish())
    bench.made["a"].down()
    assert bench.publish()
    assert bench.link.url == "b"
    assert bench.counters.counts == {"failovers": 1}


def test_when_the_serving_one_breaks_the_best_that_is_up_serves_at_once() -> None:
    """No waiting for `return_after` when there is nothing to wait with."""
    bench = Bench(return_after=3600.0)
    bench.made["a"].down()
    bench.made["b"].up()
    bench.made["a"].up()
    assert bench.link.url == "b"
    bench.made["b"].down()
    assert (bench.link.url, bench.tried()) == ("a", "a")
    bench.loop.close()


def test_a_better_broker_whose_subscriptions_are_not_granted_does_not_take_over(bench: Bench) -> None:
    """Accepted is not enough: readings have to come from there, too."""
    bench.made["a"].down()
    bench.made["b"].up()
    bench.made["a"].connected = True
    bench.made["a"]._say()
    for _ in range(20):
        bench.loop.run_once(0.01)
    assert bench.link.url == "b"


def test_stopping_says_goodbye_everywhere(bench: Bench) -> None:
    """And nothing is tried after it."""
    bench.made["a"].down()
    bench.made["b"].up()
    bench.link.stop()
    assert bench.tried() == ""
    assert bench.link.state == "stopped"
    assert not bench.publish()
