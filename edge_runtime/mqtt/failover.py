"""Several brokers in order of preference, with the interface of one connection.

::

    links[0]  preferred ──┐
    links[1]  fallback  ──┼─> the serving one: everything is published to it
    links[2]  ...       ──┘

Each broker has its own `Connection`, with its own back-off; this module handles no sockets.

- A broken link gets one attempt to reconnect. If that fails, or if the link had not lasted `SETTLED_S`, or if an
attempt to connect fails (refused, no such name, no answer, a wrong login or certificate), the next broker of the list
is tried too. The better ones are still retried.
- Without a serving broker, the best one that accepts a connection serves at once. A better one replaces the serving one
when it has been ready for `return_after` seconds without a break; nothing new is sent then until messages in flight are
acknowledged, for `HANDOVER_S` at most. The device publishes its last will itself to the broker that it leaves.
- A broker is disconnected when a better one serves: there is one connection, except during a return.

Guarantee: messages in flight when a link breaks are sent again by their senders, as with one broker, so that at most
these are repeated. Weak points: order holds only as sent; a subscriber to two brokers sees two streams. Readings that a
broker still holds for the device when it is left arrive after the return to it.
"""

from collections.abc import Callable, Iterable

import msgspec
from paho.mqtt.properties import Properties

from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import Handler, OnOutcome, Will
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

SETTLED_S = 30.0  # a link that lasted this long gets one attempt to reconnect before other brokers are tried
HANDOVER_S = 5.0


class _Link(msgspec.Struct, eq=False):
    """One broker of the list.

    Attributes:
        url: of the broker.
        connection: set while connecting or connected.
        up_since: by the loop's clock; None while it is not connected.
        failed: it has failed since it was last connected, or since the first attempt.
    """

    url: str
    connection: Connection | None = None
    up_since: float | None = None
    failed: bool = False


class Failover:
    """Has the interface of a `Connection`, for more than one broker.

    Args:
        urls: the brokers, the preferred one first.
        make: makes the connection to one of them, not started.
        return_after: seconds; see above.
        will: the message to publish to a broker that is left.
        counters: `failovers` and `returns`.

    Attributes:
        on_change: called after `connected` or `ready` changed, also when another broker takes over: then it is called
            twice, the first time as for a lost link.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        make: Callable[[str], Connection],
        *,
        name: str,
        return_after: float,
        loop: Loop,
        counters: Counters,
        will: Will | None,
    ) -> None:
        self.name = name
        self.on_change: list[Callable[[], None]] = []
        self._links = [_Link(url) for url in urls]
        self._make = make
        self._return_after = return_after
        self._loop = loop
        self._counters = counters
        self._will = will
        self._acks_in_order = True
        self._subscriptions: list[tuple[list[str], int, Handler, int, bool]] = []
        self._dropped: set[str] = set()
        self._serving: _Link | None = None
        self._last: _Link | None = None
        self._successor: _Link | None = None
        self._deadline: Timer | None = None
        self._window = 1
        self._stopping = False
        self._gap = False
        self._is_held = False

    # --- interface of Connection ------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a broker serves."""
        return self._connection is not None and self._connection.connected and not self._gap

    @property
    def ready(self) -> bool:
        """Whether a broker serves and has granted every subscription."""
        return self.connected and self._connection is not None and self._connection.ready

    @property
    def window(self) -> int:
        """How many unacknowledged messages of QoS 1 the serving broker allows."""
        if self._connection is not None:
            self._window = self._connection.window
        return self._window

    @property
    def url(self) -> str | None:
        """The URL of the serving broker."""
        return self._serving.url if self._serving is not None and self.connected else None

    @property
    def is_fallback(self) -> bool:
        """Whether another broker than the preferred one serves."""
        return self.url is not None and self._serving is not self._links[0]

    @property
    def state(self) -> str:
        """One line for people: the serving broker, and the states of better ones."""
        if self._stopping:
            return "stopped"
        tried = [link for link in self._links if link.connection is not None and link is not self._serving]
        states = [link.connection.state for link in tried if link.connection is not None]
        if self._connection is None or self._serving is None:
            return "; ".join(states) or "not started"
        others = f" (fallback; {'; '.join(states)})" if self.is_fallback else ""
        return self._connection.state + others

    @property
    def owed(self) -> int:
        """How many messages of the serving broker we have not acknowledged."""
        return 0 if self._connection is None else self._connection.owed

    @property
    def delivered(self) -> int:
        """How many messages the serving broker has brought."""
        return 0 if self._connection is None else self._connection.delivered

    def subscribe(
        self, filters: list[str], qos: int, handler: Handler, *, most_bytes: int = 0, optional: bool = False
    ) -> None:
        """As a connection's: on every broker."""
        self._subscriptions.append((filters, qos, handler, most_bytes, optional))
        for link in self._links:
            if link.connection is not None:
                link.connection.subscribe(filters, qos, handler, most_bytes=most_bytes, optional=optional)

    def acknowledge_in_any_order(self) -> None:
        """As a connection's: on every broker."""
        self._acks_in_order = False
        for link in self._links:
            if link.connection is not None:
                link.connection.acknowledge_in_any_order()

    def unsubscribe(self, handler: Handler) -> None:
        """As a connection's: on every broker that is connected."""
        self._subscriptions = [each for each in self._subscriptions if each[2] != handler]
        for link in self._links:
            if link.connection is not None:
                link.connection.unsubscribe(handler)

    def drop_filters(self, filters: Iterable[str]) -> None:
        """As a connection's: on each broker, when it is connected for the first time."""
        self._dropped.update(filters)

    def start(self) -> None:
        """Begin with the preferred broker; returns at once."""
        self._try(self._links[0])

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool = False,
        outcome: OnOutcome | None,
        properties: Properties | None = None,
    ) -> bool:
        """As a connection's, to the serving broker; False also during a return."""
        connection = self._connection
        if connection is None or self._gap or self._successor is not None:
            return False
        return connection.publish(topic, payload, qos=qos, retain=retain, outcome=outcome, properties=properties)

    def unsendable(self, topic: str, size: int) -> str | None:
        """As a connection's, for the serving broker."""
        return None if self._connection is None else self._connection.unsendable(topic, size)

    def hold(self, *, held: bool) -> None:
        """As a connection's, for every broker of the list."""
        self._is_held = held
        for link in self._links:
            if link.connection is not None:
                link.connection.hold(held=held)

    def acknowledge_at_once(self) -> None:
        """As a connection's."""
        for link in self._links:
            if link.connection is not None:
                link.connection.acknowledge_at_once()

    def poke(self) -> None:
        """As a connection's."""
        if self._connection is not None:
            self._connection.poke()

    def stop(self) -> None:
        """Disconnect from every broker."""
        self._stopping = True
        self._forget_successor()
        for link in self._links:
            self._leave(link)
        self._serving = None

    # --- links up and down ------------------------------------------------------------------------------------------

    @property
    def _connection(self) -> Connection | None:
        return None if self._serving is None else self._serving.connection

    def _try(self, link: _Link) -> None:
        """Begin to connect to a broker, unless that is in progress."""
        if link.connection is not None or self._stopping:
            return
        link.failed, link.up_since = False, None
        connection = link.connection = self._make(link.url)
        if self._dropped:
            connection.drop_filters(self._dropped)
        for filters, qos, handler, most_bytes, optional in self._subscriptions:
            connection.subscribe(filters, qos, handler, most_bytes=most_bytes, optional=optional)
        if not self._acks_in_order:
            connection.acknowledge_in_any_order()
        connection.on_change.append(lambda: self._changed(link, connection))
        if self._is_held:
            connection.hold(held=True)
        connection.start()

    def _leave(self, link: _Link) -> None:
        connection, link.connection = link.connection, None
        link.up_since = None
        if connection is not None:
            connection.on_change.clear()
            connection.stop()

    def _changed(self, link: _Link, connection: Connection) -> None:
        """Handle a link that is connected, ready or lost, or whose attempt has failed."""
        if self._stopping or link.connection is not connection:
            return
        if connection.connected:
            self._is_up(link, connection)
        else:
            self._is_down(link)

    def _is_up(self, link: _Link, connection: Connection) -> None:
        link.failed = False
        if link.up_since is None:
            link.up_since = self._loop.time()
            if self._serving is not None and self._is_better(link):
                self._loop.call_later(self._return_after, lambda: self._may_return(link, connection))
        if self._serving is None:
            self._serve(link)
        else:
            self._announce()

    def _is_down(self, link: _Link) -> None:
        was_up, link.up_since = link.up_since, None
        if was_up is None or self._loop.time() - was_up < SETTLED_S:
            link.failed = True
        if self._successor is link:
            self._forget_successor()
        if link is self._serving:
            self._serving = None
            self._forget_successor()
            self._announce()  # before another one serves, so that messages in flight are sent again
            self._serve_best()
        if link.failed and self._serving is None:
            self._try_next(link)
        self._announce()

    def _try_next(self, link: _Link) -> None:
        place = self._links.index(link) + 1
        if place < len(self._links):
            self._try(self._links[place])

    # --- choice of the serving link ---------------------------------------------------------------------------------

    def _is_better(self, link: _Link) -> bool:
        return self._serving is None or self._links.index(link) < self._links.index(self._serving)

    def _serve_best(self) -> None:
        for link in self._links:
            if link.connection is not None and link.connection.connected:
                self._serve(link)
                return

    def _serve(self, link: _Link) -> None:
        """Send everything to this broker from now on, and disconnect from those after it in the list."""
        before, self._last = self._last, link
        self._serving = link
        if before is not None and before is not link:
            self._counters.counts[
                "returns" if self._links.index(link) < self._links.index(before) else "failovers"
            ] += 1
        elif before is None and link is not self._links[0]:
            self._counters.counts["failovers"] += 1
        for other in self._links[self._links.index(link) + 1 :]:
            self._leave(other)
        self._announce()

    def _may_return(self, link: _Link, connection: Connection) -> None:
        """Return to a better broker that is stable: wait for the messages in flight, then switch."""
        if self._stopping or link.connection is not connection or link.up_since is None or not self._is_better(link):
            return
        left = link.up_since + self._return_after - self._loop.time()
        if left > 0:  # there was a break, after which another timer was started
            return
        if not connection.ready:
            self._loop.call_later(max(self._return_after, 1.0), lambda: self._may_return(link, connection))
            return
        if self._successor is None or self._links.index(link) < self._links.index(self._successor):
            self._forget_successor()
            self._successor = link
            self._deadline = self._loop.call_later(HANDOVER_S, self._change_over)
            self._change_over_when_done()

    def _change_over_when_done(self) -> None:
        serving = self._connection
        if self._successor is None:
            return
        if serving is None or not serving.in_flight:
            self._change_over()
        else:
            self._loop.call_later(0.02, self._change_over_when_done)

    def _change_over(self) -> None:
        left, successor = self._serving, self._successor
        self._forget_successor()
        if successor is None or left is None:
            return
        if left.connection is not None and self._will is not None:
            will = self._will
            left.connection.publish(will.topic, will.payload, qos=1, retain=will.retain, outcome=None)
        self._gap = True
        self._announce()
        self._gap = False
        self._serve(successor)  # leaves the other

    def _forget_successor(self) -> None:
        self._successor = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _announce(self) -> None:
        for listener in self.on_change:
            listener()
