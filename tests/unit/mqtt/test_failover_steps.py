"""Several brokers, second by second: who is tried, who serves, and what each of them is asked for."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.failover import Failover
from edge_runtime.mqtt.messages import Will
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop

WILL = Will("edge/d/status", b"offline", retain=True)


@dataclass
class _Link:
    """Stands in for a connection to one broker, and notes what it is asked for."""

    url: str
    connected: bool = False
    ready: bool = False
    window: int = 20
    in_flight: int = 0
    owed: int = 3
    delivered: int = 4
    state: str = "connecting"
    stopped: bool = False
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    sent: list[tuple[Any, ...]] = field(default_factory=list)
    on_change: list[Callable[[], None]] = field(default_factory=list)

    def start(self) -> None:
        self.calls.append(("start",))

    def stop(self) -> None:
        self.connected = self.ready = False
        self.stopped = True

    def subscribe(self, filters: list[str], qos: int, handler: Any, *, most_bytes: int, optional: bool) -> None:
        self.calls.append(("subscribe", filters, qos, handler, most_bytes, optional))

    def unsubscribe(self, handler: Any) -> None:
        self.calls.append(("unsubscribe", handler))

    def acknowledge_in_any_order(self) -> None:
        self.calls.append(("any order",))

    def drop_filters(self, filters: set[str]) -> None:
        self.calls.append(("drop", sorted(filters)))

    def hold(self, *, held: bool) -> None:
        self.calls.append(("hold", held))

    def acknowledge_at_once(self) -> None:
        self.calls.append(("at once",))

    def poke(self) -> None:
        self.calls.append(("poke",))

    def unsendable(self, topic: str, size: int) -> str | None:
        return f"{topic} of {size}"

    def publish(self, topic: str, payload: bytes, **options: Any) -> bool:
        self.sent.append((topic, payload, options))
        return self.connected

    def take_calls(self) -> list[tuple[Any, ...]]:
        """What it was asked for since the last look."""
        calls, self.calls = self.calls, []
        return calls

    def say(self) -> None:
        """Its listeners hear that something has changed."""
        for listener in list(self.on_change):
            listener()

    def up(self, *, ready: bool = True) -> None:
        """The broker has accepted us, and by default granted every subscription."""
        self.connected, self.ready = True, ready
        self.state = f"connected to {self.url}"
        self.say()

    def down(self) -> None:
        """It was lost, or an attempt has failed."""
        self.connected = self.ready = False
        self.state = f"{self.url}: gone"
        self.say()


class Bench:
    """A failover over brokers a, b, c with a clock that is moved, and what its user saw."""

    def __init__(self, *, return_after: float = 10.0, will: Will | None = WILL) -> None:
        self.loop = SteppedLoop()
        self.made: dict[str, _Link] = {}
        self.counters = Counters()
        self.link = Failover(
            ("a", "b", "c"),
            self._make,
            name="upstream",
            return_after=return_after,
            loop=self.loop.as_loop,
            counters=self.counters,
            will=will,
        )
        self.seen: list[tuple[str | None, bool]] = []
        self.link.on_change.append(self._look)

    def _make(self, url: str) -> Connection:
        self.made[url] = _Link(url)
        return cast("Connection", self.made[url])

    def _look(self) -> None:
        now = (self.link.url, self.link.ready)
        if self.seen[-1:] != [now]:
            self.seen.append(now)

    def take_seen(self) -> list[tuple[str | None, bool]]:
        """Which broker served, and whether it was ready, at each change since the last look."""
        seen, self.seen = self.seen, []
        return seen

    @property
    def tried(self) -> str:
        """The brokers that are tried or connected."""
        return "".join(sorted(url for url, link in self.made.items() if not link.stopped))

    def serve(self, url: str) -> _Link:
        """Let this one serve, after all before it have failed."""
        self.link.start()
        for other in "abc"[: "abc".index(url)]:
            self.made[other].down()
        self.made[url].up()
        self.take_seen()
        return self.made[url]

    def publish(self) -> bool:
        """Whether a message is taken."""
        return self.link.publish("t", b"x", qos=1, outcome=None)


def test_before_a_broker_serves_there_is_nothing_to_be_had() -> None:
    """No message is taken, none is owed, and none is unsendable."""
    bench = Bench()
    assert bench.link.state == "not started"
    for begin in (bench.link.poke, bench.link.start, bench.link.poke):
        begin()
        link = bench.link
        assert (link.connected, link.ready, link.url, link.is_fallback) == (False, False, None, False)
        assert (link.owed, link.delivered, link.window, link.unsendable("t", 1)) == (0, 0, 1, None)
        assert not bench.publish()
    assert bench.link.state == "connecting"
    assert bench.made["a"].take_calls() == [("start",)]
    assert bench.made["a"].sent == []


def test_the_broker_that_serves_is_asked_for_everything() -> None:
    """Its window is remembered while there is none, so that the outbox need not learn it anew."""
    bench = Bench()
    first = bench.serve("a")
    first.take_calls()
    assert (bench.link.connected, bench.link.ready, bench.link.url, bench.link.is_fallback) == (True, True, "a", False)
    assert (bench.link.owed, bench.link.delivered, bench.link.window) == (3, 4, 20)
    assert bench.link.unsendable("t", 7) == "t of 7"
    assert bench.link.state == "connected to a"
    bench.link.poke()
    assert first.take_calls() == [("poke",)]
    properties, outcome = cast("Any", object()), cast("Any", object())
    assert bench.link.publish("t", b"x", qos=0, retain=True, outcome=outcome, properties=properties)
    assert bench.link.publish("t", b"y", qos=1, outcome=None)
    assert first.sent == [
        ("t", b"x", {"qos": 0, "retain": True, "outcome": outcome, "properties": properties}),
        ("t", b"y", {"qos": 1, "retain": False, "outcome": None, "properties": None}),
    ]
    first.down()
    assert (bench.link.owed, bench.link.delivered, bench.link.window) == (0, 0, 20)
    assert bench.counters.counts == {}


def test_a_broker_that_has_not_granted_the_subscriptions_is_not_ready() -> None:
    """Its user hears of both, one after the other."""
    bench = Bench()
    bench.link.start()
    bench.made["a"].up(ready=False)
    assert (bench.link.connected, bench.link.ready) == (True, False)
    bench.made["a"].up()
    bench.made["a"].down()
    assert bench.take_seen() == [("a", False), ("a", True), (None, False)]


def test_every_broker_is_asked_for_every_subscription() -> None:
    """Those that are tried now, and those that are tried later; one that was ended is asked for nowhere any more."""
    bench = Bench()
    one, two, three = (cast("Any", object()) for _ in range(3))
    bench.link.subscribe(["s/1"], 1, one)
    bench.link.start()
    bench.link.subscribe(["s/2"], 0, two, most_bytes=99, optional=True)
    bench.link.subscribe(["s/3"], 0, three)
    first = ("subscribe", ["s/1"], 1, one, 0, False)
    second = ("subscribe", ["s/2"], 0, two, 99, True)
    third = ("subscribe", ["s/3"], 0, three, 0, False)
    assert bench.made["a"].take_calls() == [first, ("start",), second, third]
    bench.made["a"].down()
    assert bench.made["b"].take_calls() == [first, second, third, ("start",)]
    bench.link.unsubscribe(one)
    assert bench.made["a"].take_calls() == bench.made["b"].take_calls() == [("unsubscribe", one)]
    bench.made["b"].down()
    assert bench.made["c"].take_calls() == [second, third, ("start",)]


def test_what_is_wanted_of_the_connection_is_wanted_of_every_broker() -> None:
    """Acknowledgements in any order, filters that are not wanted any more, and a pause of reading."""
    bench = Bench()
    bench.link.start()
    assert bench.made["a"].take_calls() == [("start",)]
    bench.link.acknowledge_in_any_order()
    bench.link.drop_filters(["x", "y"])
    bench.link.drop_filters(["z"])
    bench.link.hold(held=True)
    assert bench.made["a"].take_calls() == [("any order",), ("hold", True)]
    bench.made["a"].down()
    assert bench.made["b"].take_calls() == [("drop", ["x", "y", "z"]), ("any order",), ("hold", True), ("start",)]
    bench.link.hold(held=False)
    bench.link.acknowledge_at_once()
    assert bench.made["a"].take_calls() == bench.made["b"].take_calls() == [("hold", False), ("at once",)]
    bench.made["b"].down()
    assert bench.made["c"].take_calls() == [("drop", ["x", "y", "z"]), ("any order",), ("start",)]


@pytest.mark.parametrize(("lasted", "tried"), [(29.9, "ab"), (30.0, "a"), (100.0, "a")])
def test_a_link_that_lasted_half_a_minute_gets_one_attempt_to_come_back(lasted: float, tried: str) -> None:
    """Then the next broker is tried too."""
    bench = Bench()
    first = bench.serve("a")
    bench.loop.advance(lasted)
    first.down()
    assert bench.tried == tried
    first.down()
    assert bench.tried == "ab"
    assert bench.counters.counts == {}


def test_brokers_are_tried_one_after_the_other_and_after_the_last_there_is_none() -> None:
    """All of them go on being tried; the first that accepts serves, and those behind it are left."""
    bench = Bench()
    bench.link.start()
    for url, tried in (("a", "ab"), ("a", "ab"), ("b", "abc"), ("c", "abc"), ("b", "abc"), ("a", "abc")):
        bench.made[url].down()
        assert bench.tried == tried
    assert bench.link.state == "a: gone; b: gone; c: gone"
    made = dict(bench.made)
    bench.made["b"].up()
    assert bench.tried == "ab"
    assert bench.made == made, "none was made twice"
    assert bench.link.state == "connected to b (fallback; a: gone)"
    assert bench.link.is_fallback
    assert bench.counters.counts == {"failovers": 1}


def test_a_better_broker_serves_when_it_has_been_back_for_as_long_as_was_asked() -> None:
    """Ten seconds without a break; a break begins them again."""
    bench = Bench(return_after=10.0)
    fallback = bench.serve("b")
    first = bench.made["a"]
    first.up()
    bench.loop.advance(9.0)
    first.down()
    bench.loop.advance(0.5)
    first.up()
    bench.loop.advance(9.9)
    assert bench.link.url == "b"
    assert bench.publish()
    assert bench.link.state == "connected to b (fallback; connected to a)"
    bench.loop.advance(0.1)
    assert bench.link.url == "a"
    assert bench.tried == "a"
    assert bench.take_seen() == [("b", True), (None, False), ("a", True)]
    assert fallback.sent[-1] == (WILL.topic, WILL.payload, {"qos": 1, "retain": True, "outcome": None})
    assert bench.counters.counts == {"failovers": 1, "returns": 1}
    assert bench.link.state == "connected to a"
    bench.loop.advance(100.0)
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


def test_in_the_moment_of_a_return_neither_broker_takes_a_message() -> None:
    """Whoever publishes when it hears of the gap would publish to the broker that is left."""
    bench = Bench(return_after=0.0, will=None)
    fallback = bench.serve("b")
    taken: list[tuple[str | None, bool]] = []
    bench.link.on_change.append(lambda: taken.append((bench.link.url, bench.publish())))
    bench.made["a"].up()
    bench.loop.advance(0.1)
    sent = [url for url, was_taken in taken if was_taken]
    assert (None, False) in taken
    assert (None, True) not in taken
    assert (len(fallback.sent), len(bench.made["a"].sent)) == (sent.count("b"), sent.count("a"))


def test_a_link_that_has_just_broken_is_gone_before_it_says_so() -> None:
    """What was in flight is given back first: whoever hears of that must not take the broker for one that serves."""
    bench = Bench()
    first = bench.serve("a")
    first.connected = False
    assert (bench.link.connected, bench.link.ready, bench.link.url) == (False, False, None)


def test_a_link_that_failed_at_first_and_then_lasted_gets_its_attempt_too() -> None:
    """What was before it was connected counts no more."""
    bench = Bench()
    bench.link.start()
    bench.made["a"].down()
    bench.made["a"].up()
    bench.loop.advance(100.0)
    bench.made["a"].down()
    assert bench.tried == "a"


@pytest.mark.parametrize(("url", "counts"), [("a", {}), ("b", {"failovers": 1})])
def test_a_broker_that_comes_back_itself_is_no_failover(url: str, counts: dict[str, int]) -> None:
    """The preferred one or another."""
    bench = Bench()
    serving = bench.serve(url)
    for _ in range(3):
        bench.loop.advance(60.0)
        serving.down()
        serving.up()
        assert bench.link.url == url
    assert bench.counters.counts == counts


def test_an_attempt_that_fails_is_heard_of_as_with_one_connection() -> None:
    """Whichever broker serves: the line that says how the others stand has changed."""
    bench = Bench()
    heard: list[str] = []
    bench.link.on_change.append(lambda: heard.append(bench.link.state))
    bench.link.start()
    bench.made["a"].down()
    assert heard[-1:] == ["a: gone; connecting"]
    bench.made["b"].up()
    heard.clear()
    bench.made["a"].down()
    assert heard == ["connected to b (fallback; a: gone)"]


def test_a_better_broker_that_serves_already_when_its_time_comes_is_left_alone() -> None:
    """It took over when the other one broke: no last will is published there, and nothing is interrupted."""
    bench = Bench(return_after=10.0)
    fallback = bench.serve("b")
    bench.made["a"].up()
    bench.loop.advance(5.0)
    fallback.down()
    assert bench.link.url == "a"
    bench.take_seen()
    bench.loop.advance(20.0)
    assert bench.take_seen() == []
    assert bench.made["a"].sent == []
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


def test_a_better_broker_that_broke_again_and_stays_away_is_waited_for_without_an_end() -> None:
    """When its time comes there is no broker to return to."""
    bench = Bench(return_after=10.0)
    bench.serve("b")
    bench.made["a"].up()
    bench.loop.advance(9.0)
    bench.made["a"].down()
    bench.loop.advance(60.0)
    assert bench.link.url == "b"
    assert bench.publish()


def test_a_short_break_at_the_beginning_begins_the_wait_again() -> None:
    """The seconds count from the last time that it came."""
    bench = Bench(return_after=10.0)
    bench.serve("b")
    bench.made["a"].up()
    bench.loop.advance(0.5)
    bench.made["a"].down()
    bench.made["a"].up()
    bench.loop.advance(9.9)
    assert bench.link.url == "b"
    bench.loop.advance(0.2)
    assert bench.link.url == "a"


def test_a_second_look_at_a_return_that_has_begun_gives_it_no_more_time() -> None:
    """The first one found the subscriptions missing and looks once more, after a break that began a second."""
    bench = Bench(return_after=0.0)
    bench.serve("b").in_flight = 3
    first = bench.made["a"]
    first.up(ready=False)
    bench.loop.advance(0.1)
    first.down()
    first.up()
    bench.loop.advance(5.2)
    assert bench.link.url == "a"


def test_a_still_better_broker_has_five_seconds_of_its_own() -> None:
    """Those of the one whose place it takes do not end them."""
    bench = Bench(return_after=0.0)
    bench.serve("c").in_flight = 3
    bench.made["b"].up()
    bench.loop.advance(3.0)
    bench.made["a"].up()
    bench.loop.advance(4.5)
    assert bench.link.url == "c"
    bench.loop.advance(0.6)
    assert bench.link.url == "a"


def test_after_a_return_that_comes_to_nothing_no_timer_wakes_the_process() -> None:
    """Although something is still in flight."""
    bench = Bench(return_after=0.0)
    bench.serve("b").in_flight = 3
    bench.made["a"].up()
    bench.loop.advance(1.0)
    bench.made["a"].down()
    bench.loop.advance(1.0)
    served = bench.loop.served
    bench.loop.advance(30.0)
    assert bench.loop.served == served


def test_a_device_without_a_will_leaves_without_one() -> None:
    """Nothing is published to the broker that is left."""
    bench = Bench(return_after=0.0, will=None)
    fallback = bench.serve("b")
    bench.made["a"].up()
    bench.loop.advance(0.1)
    assert bench.link.url == "a"
    assert fallback.sent == []


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_return_waits_five_seconds_at_most_for_what_is_in_flight(is_answered: bool) -> None:
    """Nothing new is sent meanwhile; when the last acknowledgement comes it waits no longer."""
    bench = Bench(return_after=0.0)
    fallback = bench.serve("b")
    fallback.in_flight = 3
    bench.made["a"].up()
    bench.loop.advance(0.001)
    assert not bench.publish()
    bench.loop.advance(4.9)
    assert (bench.link.url, bench.link.connected) == ("b", True)
    if is_answered:
        fallback.in_flight = 0
        bench.loop.advance(0.03)
    else:
        assert not bench.publish()
        bench.loop.advance(0.1)
    assert bench.link.url == "a"
    assert bench.publish()
    assert bench.made["a"].sent[-1][:2] == ("t", b"x")


def test_a_return_that_comes_to_nothing_leaves_nothing_behind() -> None:
    """The better one breaks: messages go on at once, and its deadline is no other's."""
    bench = Bench(return_after=0.0)
    fallback = bench.serve("b")
    fallback.in_flight = 3
    first = bench.made["a"]
    first.up()
    bench.loop.advance(3.0)
    assert not bench.publish()
    first.down()
    assert bench.publish()
    bench.loop.advance(1.0)
    first.up()
    bench.loop.advance(4.9)
    assert bench.link.url == "b", "five seconds of its own"
    bench.loop.advance(0.2)
    assert bench.link.url == "a"
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


def test_when_the_serving_one_breaks_in_the_middle_of_a_return_the_better_one_serves_at_once() -> None:
    """Its user sees the gap first, so that what was in flight is sent again; nothing follows later."""
    bench = Bench(return_after=0.0)
    fallback = bench.serve("b")
    fallback.in_flight = 3
    bench.made["a"].up()
    bench.loop.advance(1.0)
    bench.take_seen()
    fallback.down()
    assert bench.link.url == "a"
    assert bench.publish()
    assert bench.take_seen() == [(None, False), ("a", True)]
    assert bench.tried == "a"
    bench.loop.advance(10.0)
    assert bench.take_seen() == []
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


@pytest.mark.parametrize("order", ["ba", "ab"])
def test_of_two_better_brokers_the_best_takes_over(order: str) -> None:
    """Whichever of them was back first."""
    bench = Bench(return_after=0.0)
    fallback = bench.serve("c")
    fallback.in_flight = 3
    for url in order:
        bench.made[url].up()
        bench.loop.advance(1.0)
    assert bench.link.url == "c"
    fallback.in_flight = 0
    bench.loop.advance(0.1)
    assert bench.link.url == "a"
    assert bench.tried == "a"
    assert bench.counters.counts == {"failovers": 1, "returns": 1}


def test_the_second_best_serves_until_the_best_is_back() -> None:
    """From c to b, and from there to a; and away from both again."""
    bench = Bench(return_after=1.0)
    bench.serve("c")
    bench.made["b"].up()
    bench.loop.advance(1.0)
    assert (bench.link.url, bench.tried) == ("b", "ab")
    bench.made["a"].up()
    bench.loop.advance(1.0)
    assert (bench.link.url, bench.tried) == ("a", "a")
    bench.made["a"].down()
    assert bench.tried == "ab"
    bench.made["b"].up()
    assert (bench.link.url, bench.tried) == ("b", "ab")
    assert bench.counters.counts == {"failovers": 2, "returns": 2}


@pytest.mark.parametrize(("return_after", "looks_again"), [(0.0, 1.0), (10.0, 10.0)])
def test_a_better_broker_that_is_not_ready_is_looked_at_again(return_after: float, looks_again: float) -> None:
    """After as long as a return takes, and not more often than once a second."""
    bench = Bench(return_after=return_after)
    bench.serve("b")
    bench.made["a"].up(ready=False)
    bench.loop.advance(return_after)
    bench.made["a"].up()
    bench.loop.advance(looks_again - 0.1)
    assert bench.link.url == "b"
    bench.loop.advance(0.1)
    assert bench.link.url == "a"


def test_after_a_stop_nothing_is_tried_said_or_sent() -> None:
    """Whatever was under way: a return, an attempt, or a broker that says something late."""
    bench = Bench(return_after=0.0)
    fallback = bench.serve("b")
    fallback.in_flight = 3
    bench.made["a"].up()
    bench.loop.advance(1.0)
    late = [listener for link in bench.made.values() for listener in link.on_change]
    bench.link.stop()
    assert bench.tried == ""
    assert (bench.link.state, bench.link.url, bench.link.connected) == ("stopped", None, False)
    assert not bench.publish()
    bench.take_seen()
    for listener in late:
        listener()
    bench.loop.advance(60.0)
    bench.link.start()
    assert bench.tried == ""
    assert bench.take_seen() == []


def test_a_broker_that_was_left_says_nothing_any_more() -> None:
    """Its last words are not taken for those of the connection that was made to it later."""
    bench = Bench(return_after=0.0)
    bench.serve("b")
    old = bench.made["b"]
    (listener,) = old.on_change
    bench.made["a"].up()
    bench.loop.advance(0.1)
    assert (bench.link.url, old.on_change) == ("a", [])
    bench.made["a"].down()
    assert bench.made["b"] is not old
    bench.take_seen()
    old.connected = True
    listener()
    assert (bench.link.url, bench.take_seen()) == (None, [])
