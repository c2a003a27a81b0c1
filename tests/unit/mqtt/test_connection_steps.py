"""The life of a connection, second by second: paho, its hot path, and its thread move only when a test says so."""

import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.config.tables import BrokerTable
from edge_runtime.errors import TransientError
from edge_runtime.mqtt import connection, hot_packets, password_command, subscriptions
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Message, RenewedWill, Will
from edge_runtime.mqtt.whole_socket import MOST_BYTES, WholeSocket
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop

URL = "mqtt://h:1884"
MOMENT = 1e-6


@dataclass
class _Wire:
    """Stands in for a socket."""

    closed: bool = False

    def close(self) -> None:
        self.closed = True


class _Paho:
    """Notes what it is asked for."""

    def __init__(self, options: tuple[Any, ...]) -> None:
        self.options = options
        self.wire = _Wire()
        self.wrapped: WholeSocket | None = WholeSocket(cast("Any", self.wire))
        self.connects: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.logins: list[tuple[Any, Any]] = []
        self.wills: list[tuple[Any, ...]] = []
        self.subscribed: list[list[tuple[str, int]]] = []
        self.unsubscribed: list[list[str]] = []
        self.aborted = 0
        self.on_connect: Any = None
        self.on_disconnect: Any = None
        self.on_subscribe: Any = None

    def connect(self, *arguments: Any, **options: Any) -> None:
        self.connects.append((arguments, options))

    def username_pw_set(self, username: str | None, password: str | None) -> None:
        self.logins.append((username, password))

    def will_set(self, topic: str, payload: bytes, *, qos: int, retain: bool) -> None:
        self.wills.append((topic, payload, qos, retain))

    def socket(self) -> WholeSocket | None:
        return self.wrapped

    def abort(self) -> None:
        self.aborted += 1

    def subscribe(self, wanted: list[tuple[str, int]]) -> tuple[int, int]:
        self.subscribed.append(wanted)
        return 0, len(self.subscribed)

    def unsubscribe(self, filters: list[str]) -> None:
        self.unsubscribed.append(filters)


@dataclass
class _Acks:
    """Stands in for the delay of acknowledgements."""

    holding: bool = False
    calls: list[str] = field(default_factory=list)

    def allow(self) -> None:
        self.calls.append("allow")

    def at_once(self) -> None:
        self.calls.append("at once")


class _Path:
    """Stands in for a hot path."""

    def __init__(self, client: _Paho, wrapped: WholeSocket, **options: Any) -> None:
        self.client, self.wrapped, self.options = client, wrapped, options
        self.acks = _Acks()
        self.in_flight, self.owed, self.delivered = 0, [1, 2, 3], 7
        self.is_held = self.is_paused = self.answered = False
        self.outcomes: dict[int, Any] = {}
        self.grant: Any = None
        self.acks_in_order: bool | None = None
        self.calls: list[str] = []
        self.pings: list[float] = []
        self.published: list[tuple[Any, ...]] = []
        self.on_read: Callable[[], object] = lambda: None

    def publish(self, topic: str, payload: bytes, **options: Any) -> bool:
        self.published.append((topic, payload, options))
        return True

    def unsendable(self, topic: str, size: int) -> str:
        return f"{topic} of {size}"

    def hold(self, *, held: bool) -> None:
        self.is_held = held

    def say_goodbye(self) -> None:
        self.calls.append("goodbye")

    def end(self) -> None:
        self.calls.append("end")

    def flush(self) -> None:
        self.calls.append("flush")

    def flush_soon(self) -> None:
        self.calls.append("flush soon")

    def ping(self) -> None:
        self.pings.append(self.options["loop"].time())

    def read(self) -> None:
        self.calls.append("read")
        self.on_read()

    def take_calls(self) -> list[str]:
        """Those since the last look."""
        calls, self.calls = self.calls, []
        return calls


@dataclass
class _Task:
    """A piece of work for a thread."""

    name: str
    report: Callable[[Callable[[], object]], object]
    work: Callable[[], Any]
    done: Callable[[Any], object]
    failed: Callable[[Exception], object]
    what: str
    most_s: float | None = None

    def run(self, error: Exception | None = None) -> None:
        """Do it, or fail."""
        if error is not None:
            failed = error
            self.report(lambda: self.failed(failed))
            return
        found = self.work()
        self.report(lambda: self.done(found))


@dataclass
class _Secret:
    """Stands in for a program that makes passwords."""

    argv: tuple[str, ...]
    lifetime: float | None
    renew_at: float | None = None
    calls: list[str] = field(default_factory=list)

    def password(self) -> str:
        return "token"

    def renew(self) -> None:
        self.calls.append("renew")

    def forget(self) -> None:
        self.calls.append("forget")


class _Bench:
    """A connection, and what it made."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.loop, self.counters = SteppedLoop(), Counters()
        self.tasks: list[_Task] = []
        self.clients: list[_Paho] = []
        self.paths: list[_Path] = []
        self.jitter = 1.0  # from the least to the most
        self.fault: Exception | None = None
        self.changes = 0
        patch.setattr(connection, "make_client", self._client)
        patch.setattr(connection, "run_beside", self._beside)
        patch.setattr(connection, "HotPath", self._path)
        patch.setattr(random, "uniform", lambda low, high: low + (high - low) * self.jitter)
        patch.setattr(password_command, "PasswordCommand", _Secret)

    def _client(self, settings: BrokerTable, client_id: str, password: str | None, *, keeps_session: bool) -> _Paho:
        if self.fault is not None:
            raise self.fault
        self.clients.append(_Paho((settings.url, client_id, password, keeps_session)))
        return self.clients[-1]

    def _beside(self, name: str, report: Any, work: Any, **options: Any) -> None:
        self.tasks.append(_Task(name, report, work, **options))

    def _path(self, client: _Paho, wrapped: WholeSocket, **options: Any) -> _Path:
        self.paths.append(_Path(client, wrapped, **options))
        return self.paths[-1]

    def make(
        self, *, will: Will | RenewedWill | None = None, keeps_session: bool = True, **settings: Any
    ) -> Connection:
        """A connection that is not started."""
        table = BrokerTable(**{"url": URL, "keepalive": 40, "reconnect_min": 2.0, "reconnect_max": 100.0, **settings})
        self.link = Connection(
            table,
            name="upstream",
            client_id="cid",
            password=lambda: "pw",
            loop=self.loop.as_loop,
            counters=self.counters,
            will=will,
            ack_patience=0.3,
            keeps_session=keeps_session,
        )
        self.link.on_change.append(self._changed)
        return self.link

    def _changed(self) -> None:
        self.changes += 1

    @property
    def client(self) -> _Paho:
        """The newest."""
        return self.clients[-1]

    @property
    def path(self) -> _Path:
        """The newest."""
        return self.paths[-1]

    def open(self) -> _Path:
        """The thread has connected."""
        self.tasks.pop().run()
        self.loop.settle()
        return self.path

    def answer(self, reason: int = 0, *, present: bool = False, **limits: Any) -> None:
        """The broker's CONNACK."""
        properties = Properties(PacketTypes.CONNACK)  # type: ignore[no-untyped-call]
        for name, value in limits.items():
            setattr(properties, name, value)
        code = ReasonCode(PacketTypes.CONNACK, identifier=reason)
        self.client.on_connect(self.client, None, paho.ConnectFlags(session_present=present), code, properties)
        self.loop.settle()

    def grant(self, *reasons: int) -> None:
        """The broker's answer to the last subscription."""
        codes = [ReasonCode(PacketTypes.SUBACK, identifier=reason) for reason in reasons]
        self.client.on_subscribe(self.client, None, len(self.client.subscribed), codes, None)
        self.loop.settle()

    def up(self, **settings: Any) -> _Path:
        """A connection that is accepted."""
        self.make(**settings).start()
        path = self.open()
        self.answer()
        path.take_calls()
        return path

    def again(self) -> _Path:
        """The next attempt, accepted."""
        self.loop.advance(200.0)
        path = self.open()
        self.answer()
        return path

    def end(self, reason: str | None = None) -> None:
        """The hot path has found the end of the connection."""
        self.path.options["on_end"](reason)

    def attempts_after(self, seconds: float) -> bool:
        """Whether the next attempt begins exactly then."""
        before = len(self.tasks)
        self.loop.advance(seconds - MOMENT)
        early = len(self.tasks) - before
        self.loop.advance(2 * MOMENT)
        return (early, len(self.tasks) - before) == (0, 1)

    def hear(self, seconds: float, *, every: float = 1.0) -> None:
        """Let time pass with a broker that answers."""
        for _ in range(round(seconds / every)):
            self.path.wrapped.heard = True
            self.loop.advance(every)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> _Bench:
    """One."""
    return _Bench(monkeypatch)


@pytest.fixture(autouse=True)
def _logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO):
        yield


def _handler(_messages: list[Message]) -> None:
    """Takes nothing."""


# --- connecting ---------------------------------------------------------------------------------------------------


def test_before_its_start_nothing_is_there(bench: _Bench) -> None:
    """And nothing is sent; what is set holds later."""
    link = bench.make(max_inflight=17)
    assert (link.url, link.in_flight, link.owed, link.delivered, link.connected, link.ready) == (
        None, 0, 0, 0, False, False,
    )  # fmt: skip
    assert (link.state, link.window, link.is_fallback, link.name) == ("not started", 17, False, "upstream")
    assert link.publish("t", b"x", qos=1, outcome=None) is False
    assert link.unsendable("t", 1) is None
    link.poke()
    link.unsubscribe(_handler)
    link.hold(held=True)
    link.acknowledge_in_any_order()
    link.acknowledge_at_once()
    link.subscribe(["a"], 1, _handler, most_bytes=20 << 20)
    assert bench.tasks == []
    link.start()
    path = bench.open()
    assert (path.is_held, path.acks_in_order) == (True, False)
    assert path.wrapped.most_bytes == (20 << 20) + hot_packets.HEAD_BYTES
    bench.answer()
    bench.grant(1)
    assert link.ready
    assert path.acks.calls == []


@pytest.mark.parametrize(("protocol", "keeps"), [("3.1.1", True), ("5", True), ("5", False)])
def test_an_attempt_is_made_in_a_thread_with_the_settings(bench: _Bench, protocol: str, *, keeps: bool) -> None:
    """Host, port and keep-alive; with MQTT 5 also the session's life and the window."""
    bench.make(protocol=protocol, keeps_session=keeps, session_expiry=77.0, receive_maximum=9).start()
    assert bench.link.state == f"connecting to {URL}"
    (task,) = bench.tasks
    assert (task.name, task.what, task.most_s) == ("mqtt-connect", f"connecting to {URL}", 300.0)
    assert bench.client.options == (URL, "cid", "pw", keeps)
    path = bench.open()
    ((arguments, options),) = bench.client.connects
    assert arguments == ("h", 1884, 40)
    if protocol == "5":
        assert options["clean_start"] is not keeps
        properties = options["properties"]
        assert (properties.SessionExpiryInterval, properties.ReceiveMaximum) == (77 if keeps else 0, 9)
    else:
        assert options == {}
    assert bench.client.logins == []
    found = path.options
    assert (found["url"], found["is_v5"], found["ack_patience"]) == (URL, protocol == "5", 0.3)
    assert (path.acks_in_order, path.is_held, path.calls) == (True, False, ["flush"])
    assert path.wrapped.most_bytes == MOST_BYTES
    found["on_state"]("so it is")
    assert bench.link.state == "so it is"


def test_a_session_is_kept_where_nothing_else_is_asked_for(bench: _Bench) -> None:
    """So that no reading is lost while the link is down."""
    Connection(
        BrokerTable(url=URL),
        name="n",
        client_id="c",
        password=lambda: None,
        loop=bench.loop.as_loop,
        counters=bench.counters,
    ).start()
    assert bench.client.options == (URL, "c", None, True)


@pytest.mark.parametrize("latency", ["prompt", "economical"])
def test_the_path_knows_whether_delays_matter(bench: _Bench, latency: str) -> None:
    """As configured."""
    assert bench.up(latency=latency).options["prompt"] is (latency == "prompt")


def test_an_attempt_of_a_minute_is_aborted(bench: _Bench) -> None:
    """Unless it has succeeded or has been stopped."""
    bench.make().start()
    bench.loop.advance(60.0 - MOMENT)
    assert bench.client.aborted == 0
    bench.loop.advance(2 * MOMENT)
    assert bench.client.aborted == 1
    bench.tasks.pop().run(TimeoutError())
    bench.loop.settle()
    bench.loop.advance(3.0)
    bench.open()
    bench.answer()
    bench.hear(70)
    assert bench.client.aborted == 0
    bench.make().start()
    bench.link.stop()
    bench.loop.advance(70.0)
    assert bench.client.aborted == 0


def test_pauses_double_up_to_the_limit(bench: _Bench) -> None:
    """The state names the fault and the pause; each failure is counted and announced."""
    bench.make().start()
    for pause in (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0, 100.0):
        bench.tasks.pop().run(ConnectionRefusedError(111, "Connection refused"))
        bench.loop.settle()
        assert bench.link.state == f"{URL}: Connection refused; next attempt in {pause:.0f} s"
        assert bench.attempts_after(pause)
    assert bench.counters.errors == {"connect_failed": 8}
    assert bench.changes == 8


def test_pauses_have_jitter_and_a_least(bench: _Bench) -> None:
    """From half to whole, and a second or `reconnect_min` at the least."""
    bench.jitter = 0.0
    bench.make().start()
    for pause in (1.0, 2.0, 4.0):
        bench.tasks.pop().run(OSError())
        bench.loop.settle()
        assert bench.attempts_after(pause)
    bench.make(reconnect_min=0.5).start()
    bench.tasks.pop().run(OSError())
    bench.loop.settle()
    assert bench.attempts_after(0.5)


def test_the_doubling_has_an_end(bench: _Bench) -> None:
    """After sixteen failures, so that the number stays a number however long a broker is away."""
    bench.make(reconnect_min=0.01, reconnect_max=1e9).start()
    for _ in range(17):
        bench.tasks.pop().run(OSError())
        bench.loop.advance(2000.0)
    bench.tasks.pop().run(OSError())
    bench.loop.settle()
    assert bench.attempts_after(0.01 * 65_536)


def test_what_cannot_be_prepared_is_tried_again(bench: _Bench) -> None:
    """An unreadable certificate, at present."""
    bench.fault = OSError("no certificate")
    bench.make().start()
    assert bench.tasks == []
    assert bench.link.state == f"cannot prepare the connection to {URL}: no certificate; next attempt in 2 s"
    bench.fault = None
    assert bench.attempts_after(2.0)


def test_a_socket_that_is_gone_at_once_is_a_failed_attempt(bench: _Bench) -> None:
    """There is none at paho then."""
    bench.make().start()
    bench.client.wrapped = None
    bench.tasks.pop().run()
    bench.loop.settle()
    assert bench.link.state == f"{URL} closed the connection at once; next attempt in 2 s"
    assert (bench.paths, bench.counters.errors) == ([], {"connect_failed": 1})


@pytest.mark.parametrize("how", ["stopped", "another"])
def test_an_attempt_that_is_not_wanted_any_more_changes_nothing(bench: _Bench, how: str) -> None:
    """Whether it fails or succeeds; its socket is closed."""
    link = bench.make()
    link.start()
    link.start()
    if how == "stopped":
        link.stop()
        bench.tasks.reverse()
    state = link.state
    old = bench.clients[0] if how == "another" else bench.clients[1]
    task = bench.tasks[0]
    task.run(OSError())
    bench.loop.settle()
    task.run()
    bench.loop.settle()
    assert (bench.counters.errors, bench.paths, link.state) == ({}, [], state)
    assert old.wire.closed


def test_a_server_that_does_not_accept_within_ten_seconds_is_left(bench: _Bench) -> None:
    """Counted as a refusal."""
    bench.make().start()
    path = bench.open()
    bench.loop.advance(10.0 - MOMENT)
    assert bench.link.state == f"connecting to {URL}"
    bench.loop.advance(2 * MOMENT)
    expected = f"{URL} accepted the connection but does not speak MQTT to us; next attempt in 2 s"
    assert bench.link.state == expected
    assert bench.counters.errors == {"refused": 1}
    assert path.take_calls() == ["flush", "end"]
    bench.loop.advance(2.0)
    bench.open()
    bench.answer()
    bench.loop.advance(12.0)
    assert bench.link.connected


def test_the_will_is_made_anew_and_adapted(bench: _Bench) -> None:
    """To what the broker takes; other refusals change nothing."""
    wills = iter([Will("s", b"%d" % n, retain=n != 4) for n in range(5)])
    bench.make(will=lambda: next(wills)).start()
    found = []
    for reason in (0x87, 0x9B, 0x9A, 0x87, 0x87):
        found += bench.client.wills
        bench.open()
        if len(found) < 5:
            bench.answer(reason)
            bench.end()
            bench.loop.advance(200.0)
    assert found == [
        ("s", b"0", 1, True), ("s", b"1", 1, True), ("s", b"2", 0, True), ("s", b"3", 0, False), ("s", b"4", 0, False),
    ]  # fmt: skip
    bench.make(will=Will("s", b"x", retain=False)).start()
    assert bench.client.wills == [("s", b"x", 1, False)]


# --- accepted -----------------------------------------------------------------------------------------------------


def test_an_accepted_connection_passes_everything_on(bench: _Bench) -> None:
    """To the path; before that nothing is published."""
    bench.make().start()
    path = bench.open()
    link = bench.link
    assert link.publish("t", b"x", qos=1, outcome=None) is False
    assert (link.url, path.published) == (None, [])
    changes = bench.changes
    bench.answer()
    assert bench.changes == changes + 1
    assert (link.url, link.connected, link.ready, link.state) == (URL, True, True, f"connected to {URL}")
    assert bench.counters.counts == {"connects": 1}
    assert link.publish("t", b"x", qos=1, outcome=None)
    given = {"qos": 1, "retain": False, "outcome": None, "properties": None}
    assert path.published == [("t", b"x", given)]
    path.in_flight = 5
    assert (link.in_flight, link.owed, link.delivered, link.unsendable("t", 8)) == (5, 3, 7, "t of 8")
    assert path.acks.calls == ["allow"]
    link.acknowledge_at_once()
    assert path.acks.calls == ["allow", "at once"]
    path.take_calls()
    link.poke()
    assert path.take_calls() == ["flush"]
    link.hold(held=True)
    assert path.is_held
    link.acknowledge_in_any_order()
    assert path.acks_in_order is False


def test_subscriptions_may_come_and_go_while_it_is_up(bench: _Bench) -> None:
    """Not ready until they are granted; a refusal is the state until it is lifted."""
    path = bench.up()
    link = bench.link
    link.drop_filters(["old"])
    changes = bench.changes
    link.subscribe(["a"], 1, _handler, most_bytes=30 << 20)
    bench.loop.settle()
    assert (link.ready, bench.changes) == (False, changes + 1)
    assert path.wrapped.most_bytes == (30 << 20) + hot_packets.HEAD_BYTES
    assert path.take_calls() == ["flush soon"]
    assert (bench.client.subscribed, bench.client.unsubscribed) == ([[("a", 1)]], [["old"]])
    bench.grant(0x87)
    assert (link.ready, link.state) == (False, f"{URL} refused a subscription to 'a': Not authorized")
    bench.loop.advance(5.0)
    bench.grant(1)
    assert (link.ready, link.state) == (True, f"connected to {URL}")
    path.options["on_state"]("another")
    link.subscribe(["b"], 1, _handler)
    bench.grant(1)
    assert link.state == "another"
    link.unsubscribe(_handler)
    bench.loop.settle()
    assert bench.client.unsubscribed[1:] == [["a", "b"]]


def test_a_refusal_ends_with_its_connection(bench: _Bench) -> None:
    """The next one is asked for everything again."""
    bench.make().subscribe(["a"], 1, _handler)
    bench.link.start()
    bench.open()
    bench.answer()
    assert bench.path.acks.calls == [], "acknowledgements are held back only when everything is granted"
    bench.grant(0x87)
    bench.end("cut")
    bench.again()
    assert bench.client.subscribed == [[("a", 1)]]
    bench.grant(1)
    assert bench.link.ready


def test_an_optional_subscription_delays_nothing(bench: _Bench) -> None:
    """Its message may be as long as any."""
    path = bench.up()
    bench.link.subscribe(["a"], 1, _handler, optional=True)
    assert bench.link.ready
    assert path.wrapped.most_bytes == MOST_BYTES


def test_the_limits_of_the_broker_are_taken(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """The smaller window; what is missing is counted each time and logged once."""
    bench.make(max_inflight=20).start()
    path = bench.open()
    bench.answer(ReceiveMaximum=5, MaximumPacketSize=999, MaximumQoS=0, RetainAvailable=0)
    grant = path.grant
    assert (grant.window, grant.bytes, grant.qos, grant.retains, bench.link.window) == (5, 999, 0, False, 5)
    assert bench.counters.errors == {"broker_takes_qos_0": 1, "broker_retains_nothing": 1}
    bench.end("x")
    bench.loop.advance(9.0)
    path = bench.open()
    bench.answer(ReceiveMaximum=500, MaximumQoS=0)
    grant = path.grant
    assert (grant.window, grant.bytes, grant.qos, grant.retains) == (20, hot_packets.MOST_BYTES, 0, True)
    assert (bench.link.window, bench.counters.errors["broker_takes_qos_0"]) == (20, 2)
    assert [record.message for record in caplog.records] == [
        "the broker takes QoS 0 only: what is sent counts as delivered",
        "the broker retains nothing, status and models included",
    ]
    bench.end("x")
    path = bench.again()
    assert (path.grant.window, path.grant.qos, path.grant.retains) == (20, 1, True)


def test_a_session_that_the_broker_has_lost_is_counted(bench: _Bench) -> None:
    """Not the first one, not one that is there, and not where nothing is subscribed."""
    for subscribes in (False, True):
        bench.make()
        if subscribes:
            bench.link.subscribe(["a"], 1, _handler)
        bench.link.start()
        bench.open()
        lost = -1
        for present in (False, True, False):
            lost = bench.counters.errors["session_lost"]
            bench.answer(present=present)
            bench.end("x")
            bench.loop.advance(200.0)
            bench.open()
        assert (lost, bench.counters.errors["session_lost"]) == (0, int(subscribes))
        bench.link.stop()


@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({}, "Not authorized"),
        ({"ReasonString": "x" * 201}, f"Not authorized ({'x' * 200})"),
        ({"ServerReference": "other"}, "Not authorized (it names another server: other)"),
    ],
)
def test_a_refused_login_is_the_state_in_the_brokers_words(bench: _Bench, limits: dict[str, Any], text: str) -> None:
    """Also when the broker then closes."""
    bench.make().start()
    bench.open()
    bench.answer(0x87, **limits)
    assert not bench.link.connected
    bench.end()
    assert bench.link.state == f"{URL} refused the login of 'cid': {text}; next attempt in 2 s"
    assert bench.counters.errors == {"refused": 1}


# --- losing -------------------------------------------------------------------------------------------------------


def test_a_lost_connection_is_forgotten_and_made_anew(bench: _Bench) -> None:
    """With its timers."""
    path = bench.up()
    changes = bench.changes
    bench.end("cut")
    assert (bench.link.connected, bench.link.ready, bench.link.url) == (False, False, None)
    assert (bench.link.state, path.take_calls()) == ("cut; next attempt in 2 s", ["end"])
    assert (bench.counters.errors, bench.changes) == ({"disconnected": 1}, changes + 1)
    bench.end("late")  # an older callback
    assert bench.counters.errors == {"disconnected": 1}
    assert bench.attempts_after(2.0)
    path = bench.open()
    bench.loop.advance(9.0)
    assert bench.link.state == f"connecting to {URL}", "the check of the earlier connection is no more"


def test_half_a_minute_resets_the_pause(bench: _Bench) -> None:
    """To the second."""
    bench.up()
    for seconds, pause in ((0.0, 2.0), (29.0, 4.0), (30.0, 2.0), (1.0, 4.0)):
        bench.hear(seconds)
        bench.end("cut")
        assert bench.attempts_after(pause)
        bench.open()
        bench.answer()
    bench.end("cut")
    bench.loop.advance(200.0)
    bench.open()
    bench.answer(0x87)
    bench.end()
    assert bench.attempts_after(16.0), "one that was never accepted lasted for no time"


def test_who_ended_the_connection_is_known(bench: _Bench) -> None:
    """The fault, else the broker's reason, else that it was closed."""
    bench.up()
    code = ReasonCode(PacketTypes.DISCONNECT, identifier=0x8B)
    flags = paho.DisconnectFlags(is_disconnect_packet_from_server=True)
    bench.client.on_disconnect(bench.client, None, flags, code, None)
    bench.end()
    assert bench.link.state == f"{URL} ended the connection: Server shutting down; next attempt in 2 s"
    bench.again()
    flags = paho.DisconnectFlags(is_disconnect_packet_from_server=False)
    bench.client.on_disconnect(bench.client, None, flags, code, None)
    bench.hear(40.0)
    bench.end()
    assert bench.link.state.startswith(f"{URL} closed the connection; ")
    code = ReasonCode(PacketTypes.DISCONNECT, identifier=0x8E)
    flags = paho.DisconnectFlags(is_disconnect_packet_from_server=True)
    bench.again()
    bench.client.on_disconnect(bench.client, None, flags, code, None)
    bench.end()
    assert "another client of this broker probably uses the client id 'cid' too" in bench.link.state


@pytest.mark.parametrize(
    ("seconds", "reason", "is_rival"), [(29.0, None, True), (30.0, None, False), (1.0, "cut", False)]
)
def test_ends_that_come_soon_are_a_sign_of_a_rival(
    bench: _Bench, seconds: float, reason: str | None, *, is_rival: bool
) -> None:
    """Two in a row within half a minute, and without a fault of the line."""
    bench.up()
    state = ""
    for _ in range(2):
        bench.hear(seconds)
        bench.end(reason)
        state = bench.link.state
        bench.again()
    assert ("another client" in state) == is_rival


def test_refused_logins_are_no_sign_of_a_rival(bench: _Bench) -> None:
    """They never were connections, also soon after one."""
    bench.up()
    bench.end("cut")
    bench.loop.advance(2.0)
    for _ in range(2):
        bench.open()
        bench.end()
        assert "another client" not in bench.link.state
        bench.loop.advance(8.0)
    bench.tasks.clear()
    bench.make().start()
    for _ in range(3):
        bench.open()
        bench.end()
        assert "another client" not in bench.link.state
        bench.loop.advance(200.0)


def test_a_stop_is_the_end(bench: _Bench) -> None:
    """What is unsent is sent; nothing is connected again."""
    path = bench.up()
    changes = bench.changes
    bench.link.stop()
    assert path.take_calls() == ["goodbye", "end"]
    assert (bench.link.state, bench.link.connected, bench.changes) == ("stopped", False, changes + 1)
    assert bench.counters.errors == {}
    bench.loop.advance(500.0)
    assert (bench.tasks, path.pings) == ([], [])
    bench.make().start()
    bench.tasks.pop().run(OSError())
    bench.loop.settle()
    bench.link.stop()
    assert bench.link.state == "stopped"
    bench.loop.advance(500.0)
    assert bench.tasks == []


def test_an_end_that_is_found_while_it_stops_is_no_loss(bench: _Bench) -> None:
    """The goodbye reads the last acknowledgements, and may find the end."""
    path = bench.up()
    path.say_goodbye = lambda: bench.end("cut")  # type: ignore[method-assign]
    bench.link.stop()
    assert (bench.counters.errors, bench.link.state) == ({}, "stopped")
    bench.loop.advance(500.0)
    assert bench.tasks == []


# --- staying ------------------------------------------------------------------------------------------------------


def test_silence_of_one_and_a_half_keep_alives_is_an_end(bench: _Bench) -> None:
    """Found at one of the four checks of a keep-alive; a ping leaves every three quarters of it."""
    path = bench.up()
    began = bench.loop.now
    bench.loop.advance(60.0 - MOMENT)
    assert bench.link.connected
    assert path.pings == [began + 30]
    bench.loop.advance(2 * MOMENT)
    assert bench.link.state == f"{URL} does not answer; next attempt in 2 s"
    assert bench.counters.errors == {"disconnected": 1}
    assert path.pings == [began + 30]


def test_one_sign_of_life_is_worth_one_and_a_half_keep_alives(bench: _Bench) -> None:
    """From the check that finds it."""
    path = bench.up()
    began = bench.loop.now
    path.wrapped.heard = True
    bench.loop.advance(70.0 - MOMENT)
    assert bench.link.connected
    assert path.pings == [began + 30, began + 60]
    bench.loop.advance(2 * MOMENT)
    assert not bench.link.connected


@pytest.mark.parametrize("name", ["is_paused", "is_held"])
def test_silence_means_nothing_while_nothing_is_read(bench: _Bench, name: str) -> None:
    """Nor does a missing acknowledgement."""
    path = bench.up()
    path.outcomes[1] = None
    setattr(path, name, True)
    bench.loop.advance(500.0)
    assert bench.link.connected


def test_no_ping_leaves_before_the_broker_has_accepted(bench: _Bench) -> None:
    """With a keep-alive shorter than its patience."""
    bench.make(keepalive=8).start()
    path = bench.open()
    bench.loop.advance(9.0)
    assert path.pings == []


def test_a_short_keep_alive_is_checked_four_times_a_second(bench: _Bench) -> None:
    """And not more often."""
    bench.make(keepalive=1).start()
    path = bench.open()
    bench.answer()
    path.acks.holding = True
    path.take_calls()
    for _ in range(8):
        bench.hear(0.25, every=0.25)
    assert path.take_calls() == ["read"] * 8
    path.is_paused = True
    bench.hear(1.0)
    path.is_paused, path.acks.holding = False, False
    bench.hear(1.0)
    assert path.take_calls() == []


def test_a_check_that_finds_the_end_goes_no_further(bench: _Bench) -> None:
    """Its read may end the connection."""
    path = bench.up()
    path.acks.holding = True
    path.on_read = lambda: bench.end("cut")
    bench.loop.advance(10.0)
    assert bench.counters.errors == {"disconnected": 1}
    assert bench.link.state == f"connecting to {URL}" or bench.link.state.startswith("cut")
    assert path.take_calls() == ["read", "end"]
    bench.loop.advance(100.0)
    assert path.take_calls() == []


@pytest.mark.parametrize(("keepalive", "end"), [(40, 30 + 60), (80, 40 + 80)])
def test_a_broker_that_acknowledges_nothing_is_left(bench: _Bench, keepalive: int, end: int) -> None:
    """After a minute, or the keep-alive if that is longer, from the check that finds an acknowledgement."""
    path = bench.up(keepalive=keepalive)
    path.outcomes[1] = None
    bench.hear(20.0)
    path.answered = True
    bench.hear(20.0)
    assert not path.answered
    bench.hear(end - 40 - 1)
    assert bench.link.connected
    bench.hear(1)
    assert bench.link.state == f"{URL} acknowledges nothing any more; next attempt in 2 s"
    assert bench.counters.errors == {"disconnected": 1}


def test_without_messages_no_acknowledgement_is_missed(bench: _Bench) -> None:
    """However long; and timers of the past are not kept."""
    path = bench.up()
    bench.hear(300.0)
    assert bench.link.connected
    assert len(bench.link._timers) <= 2
    path.outcomes[1] = None
    bench.hear(59.0)
    assert bench.link.connected


@pytest.mark.parametrize(("server", "seconds"), [(8, 12.0), (400, 60.0)])
def test_a_shorter_keep_alive_of_the_broker_holds(bench: _Bench, server: int, seconds: float) -> None:
    """A longer one does not."""
    bench.make().start()
    path = bench.open()
    began = bench.loop.now
    bench.answer(ServerKeepAlive=server)
    bench.loop.advance(seconds - MOMENT)
    assert bench.link.connected
    assert path.pings == [began + seconds / 2], "at the first check behind seven tenths of it"
    bench.loop.advance(2 * MOMENT)
    assert not bench.link.connected


def test_a_keep_alive_of_one_broker_is_not_that_of_the_next_connection(bench: _Bench) -> None:
    """It is that of the settings again."""
    bench.make().start()
    bench.open()
    bench.answer(ServerKeepAlive=8)
    bench.end("cut")
    bench.loop.advance(2.0)
    bench.open()
    bench.answer()
    bench.loop.advance(59.0)
    assert bench.link.connected


def test_subscriptions_that_cannot_be_retried_need_a_new_connection(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next check; the state keeps what was refused."""
    monkeypatch.setattr(subscriptions, "MOST_RETRIES", 0)
    bench.make().subscribe(["a"], 1, _handler)
    bench.link.start()
    bench.open()
    bench.answer()
    bench.grant(0x87)
    bench.loop.advance(10.0)
    expected = f"{URL} refused a subscription to 'a': Not authorized; the connection begins anew; next attempt in 2 s"
    assert bench.link.state == expected
    assert bench.counters.errors["disconnected"] == 1


# --- passwords that expire ----------------------------------------------------------------------------------------


def _secret(bench: _Bench, **settings: Any) -> _Secret:
    """A connection whose password a program makes, accepted; it expires in 100 s."""
    link = bench.make(username="u", password_command=("token",), password_lifetime=120.0, **settings)
    secret = cast("_Secret", link._secret)
    assert (secret.argv, secret.lifetime) == (("token",), 120.0)
    secret.renew_at = bench.loop.now + 100.0
    link.start()
    bench.open()
    bench.answer()
    return secret


def test_a_password_is_renewed_in_time(bench: _Bench) -> None:
    """The program runs in a thread; then the connection is made anew with a goodbye."""
    secret = _secret(bench)
    assert bench.client.options[2] is None
    assert bench.client.logins == [("u", "token")]
    bench.hear(99.0)
    assert bench.tasks == []
    bench.hear(1.0)
    (task,) = bench.tasks
    assert (task.name, task.what, secret.calls) == ("mqtt-password", "password_command", [])
    path, changes = bench.path, bench.changes
    path.take_calls()
    states: list[str] = []
    bench.link.on_change.append(lambda: states.append(bench.link.state))
    bench.tasks.pop().run()
    bench.loop.settle()
    assert states == [f"connecting to {URL} with another password"]
    assert secret.calls == ["renew"]
    assert path.take_calls() == ["goodbye", "end"]
    assert bench.counters.counts == {"connects": 1, "renewals": 1}
    assert (bench.counters.errors, bench.changes, bench.link.connected) == ({}, changes + 1, False)
    secret.renew_at = None
    bench.open()
    bench.answer()
    bench.hear(300.0)
    assert (bench.link.connected, bench.tasks) == (True, [])


def test_messages_in_flight_have_a_second(bench: _Bench) -> None:
    """Before the connection is replaced; less if they are acknowledged."""
    for seconds in (0.5, 1.0):
        _secret(bench)
        bench.hear(100.0)
        bench.path.in_flight = 1
        bench.tasks.pop().run()
        bench.loop.advance(0.45)
        assert bench.link.connected
        bench.path.in_flight = int(seconds == 1.0)
        bench.loop.advance(0.1)
        assert bench.link.connected is (seconds == 1.0)
        bench.loop.advance(0.43)
        assert bench.link.connected is (seconds == 1.0)
        bench.loop.advance(0.05)
        assert not bench.link.connected
        bench.link.stop()
        bench.tasks.clear()


def test_a_program_that_fails_is_asked_again(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """After five seconds, over the connection that still is."""
    _secret(bench)
    bench.hear(100.0)
    bench.tasks.pop().run(TransientError("no token"))
    bench.loop.settle()
    assert bench.counters.errors == {"password_command": 1}
    assert [record.message for record in caplog.records] == ["no token: asking again"]
    bench.hear(4.9, every=0.1)
    assert bench.tasks == []
    bench.hear(0.2, every=0.1)
    (task,) = bench.tasks
    bench.end("cut")
    for error in (TransientError("no token"), None):
        task.run(error)
        bench.loop.settle()
    bench.tasks.clear()
    bench.loop.advance(2.0)
    assert [each.name for each in bench.tasks] == ["mqtt-connect"]
    assert "renewals" not in bench.counters.counts


@pytest.mark.parametrize("error", [None, TransientError("no token")])
def test_a_password_that_comes_after_the_stop_changes_nothing(bench: _Bench, error: Exception | None) -> None:
    """Nor does its failure."""
    _secret(bench)
    bench.hear(100.0)
    task = bench.tasks.pop()
    bench.link.stop()
    task.run(error)
    bench.loop.advance(100.0)
    assert (bench.tasks, bench.link.state, bench.counters.counts) == ([], "stopped", {"connects": 1})


def test_a_password_that_comes_over_a_later_connection_does_not_replace_it(bench: _Bench) -> None:
    """That one has been made with the newest."""
    secret = _secret(bench)
    bench.hear(100.0)
    task = bench.tasks.pop()
    bench.end("cut")
    secret.renew_at = None
    bench.loop.advance(2.0)
    bench.open()
    bench.answer()
    task.run()
    bench.loop.settle()
    task.run(TransientError("no token"))
    bench.hear(10.0)
    assert (bench.link.connected, bench.tasks) == (True, [])


def test_the_renewal_of_a_lost_connection_is_forgotten(bench: _Bench) -> None:
    """Also after the checks of the keep-alive."""
    _secret(bench)
    bench.hear(50.0)
    bench.end("cut")
    bench.loop.advance(150.0)
    assert [task.name for task in bench.tasks] == ["mqtt-connect"]


def test_a_refused_password_is_forgotten(bench: _Bench) -> None:
    """And a program that gives none at the start is a failed attempt, counted as such."""
    link = bench.make(password_command=("token",))
    link.start()
    bench.open()
    bench.answer(0x86)
    assert cast("_Secret", link._secret).calls == ["forget"]
    bench.end()
    bench.loop.advance(2.0)
    bench.tasks.pop().run(TransientError("no token"))
    bench.loop.settle()
    assert bench.counters.errors == {"refused": 1, "password_command": 1, "connect_failed": 1}
    assert link.state == f"{URL}: no token; next attempt in 4 s"
