"""The subscriptions of a connection, and the broker's answers: granted, lowered, or refused and retried.

Guarantee: a refusal is counted and named with its topic, the connection is not `ready` meanwhile, and the topic is
subscribed again after `RETRY_FIRST_S` to `RETRY_MOST_S` seconds: an access list may change, a quota become free. An
optional subscription delays nothing: it is sent in a separate packet, once a connection, and not at all after the
broker has ended `MOST_ENDS` connections in a row instead of answering. Its handler gets the messages that no other
handler claims, so that rare messages add no cost to readings; if a filter of another handler matches such a topic too,
both handlers get every message.
"""

from collections.abc import Callable, Iterable

import msgspec
import paho.mqtt.client as paho
from paho.mqtt.reasoncodes import ReasonCode

from edge_runtime.config.topics import fewest
from edge_runtime.mqtt.messages import Handler
from edge_runtime.mqtt.routes import Routes
from edge_runtime.system.loop import Loop, Timer

RETRY_FIRST_S, RETRY_MOST_S = 5.0, 600.0
MOST_ENDS = 3
MOST_RETRIES = 900  # on one connection: paho numbers its packets from 1 up to `FIRST_ID`


class Subscription(msgspec.Struct, eq=False):
    """The topics of one handler.

    Attributes:
        filters: its topic filters.
        qos: the highest of its messages.
        handler: gets the messages.
        optional: whether a refusal is no fault of the connection.
    """

    filters: list[str]
    qos: int
    handler: Handler
    optional: bool


class Subscriptions:
    """The subscriptions of one link, over all its connections.

    Args:
        loop: the event loop.
        note: counts a fault by its reason, and logs the first one.
        flush: writes the packets.

    Attributes:
        routes: the handlers by topic; always the same object.
    """

    def __init__(self, loop: Loop, note: Callable[[str, str], None], flush: Callable[[], None]) -> None:
        self._loop = loop
        self._note = note
        self._flush = flush
        self.routes = Routes()
        self._all: list[Subscription] = []
        self._client: paho.Client | None = None
        self._asked: dict[str, int] = {}  # filters and QoS sent over this connection
        self._unwanted: set[str] = set()  # filters still subscribed at the broker
        self._pending: dict[int, list[tuple[str, int]]] = {}  # unanswered ones, by packet id
        self._refused: list[tuple[str, int]] = []
        self._why = ""
        self._retry_s = RETRY_FIRST_S
        self._retries = 0
        self._ends = 0  # connections in a row that ended before an optional subscription was answered
        self._timer: Timer | None = None

    def __bool__(self) -> bool:
        return not all(each.optional for each in self._all)

    @property
    def are_granted(self) -> bool:
        """Whether the broker has granted every subscription."""
        if self._refused:
            return False
        return not any(topic not in self._optional for asked in self._pending.values() for topic, _ in asked)

    @property
    def refusal(self) -> str:
        """The refused topics and the reason; empty if none was."""
        topics = ", ".join(repr(topic) for topic, _ in self._refused)
        return f"a subscription to {topics}: {self._why}" if topics else ""

    @property
    def are_exhausted(self) -> bool:
        """Whether this connection has used up its retries, so that only a new one can retry."""
        return self._retries > MOST_RETRIES

    @property
    def _optional(self) -> set[str]:
        """Filters that only optional subscriptions have."""
        needed = {topic for each in self._all if not each.optional for topic in each.filters}
        return {topic for each in self._all if each.optional for topic in each.filters} - needed

    def add(self, filters: list[str], qos: int, handler: Handler, *, optional: bool = False) -> None:
        """Add a subscription; sent at once if connected."""
        self._all.append(Subscription(filters, qos, handler, optional))
        self._set_routes()
        self._ask_for_topics()

    def remove(self, handler: Handler) -> None:
        """Remove the subscriptions of `handler`; a filter of another handler stays."""
        for each in self._all:
            if each.handler == handler:
                self._unwanted.update(each.filters)
        self._all = [each for each in self._all if each.handler != handler]
        self._set_routes()
        self._loop.call_soon(self._ask_for_topics)  # a filter may be added again in the same pass

    def _set_routes(self) -> None:
        self.routes.set((each.filters, each.handler) for each in self._all)

    def drop(self, filters: Iterable[str]) -> None:
        """Unsubscribe, at the next connection, filters of an earlier start that the broker still keeps."""
        self._unwanted.update(filters)

    def begin(self, client: paho.Client) -> None:
        """Subscribe to everything on an accepted connection."""
        self._client = client
        self._asked = {}
        self._ask_for_topics()

    def _ask_for_topics(self) -> None:
        """Send the subscriptions not yet sent over this connection, and unsubscribe unwanted filters.

        A filter that another one covers is not subscribed, since a broker may send a message once for each matching
        filter. While the link is down this waits for the next connection, because the broker keeps filters.
        """
        if self._client is None:
            return
        wants_optional = self._ends < MOST_ENDS
        given = [
            (topic, each.qos) for each in self._all if wants_optional or not each.optional for topic in each.filters
        ]
        wanted = fewest(given)
        # First: filters that an earlier start may have subscribed.
        known = self._asked.keys() or {topic for topic, _ in given}
        anew = [(topic, qos) for topic, qos in wanted.items() if self._asked.get(topic) != qos]
        gone = sorted((self._unwanted | known) - wanted.keys())
        optional = self._optional
        for part in (
            [each for each in anew if each[0] not in optional],
            [each for each in anew if each[0] in optional],
        ):
            if part:
                self._ask(part)
        if gone:
            self._client.unsubscribe(gone)
            self._refused = [each for each in self._refused if each[0] in wanted]
        self._asked = wanted
        self._unwanted.clear()
        self._flush()

    def answered(self, mid: int, reasons: list[ReasonCode]) -> None:
        """Handle the broker's answer to the packet with this id."""
        wanted, optional = self._pending.pop(mid, []), self._optional
        if any(topic in optional for topic, _ in wanted):
            self._ends = 0
        answers: list[ReasonCode | None] = [*reasons, *[None] * len(wanted)]  # it may answer too few
        for (topic, qos), answer in zip(wanted, answers, strict=False):
            if answer is None or answer.is_failure:
                why = "no answer" if answer is None else str(answer)
                if topic in optional:
                    self._note(
                        "optional_subscription_refused", f"the broker refused the subscription to {topic}: {why}"
                    )
                else:
                    self._refuse(topic, qos, why)
            elif answer.value < qos:
                self._note("subscription_at_qos_0", f"the broker sends {topic} at QoS 0 only: readings may be lost")

    def end(self) -> None:
        """Forget the state of a lost connection."""
        optional = self._optional
        asked = [topic for asked in self._pending.values() for topic, _ in asked if topic in optional]
        if asked:
            self._ends += 1
            if self._ends == MOST_ENDS:
                self._note(
                    "optional_subscription_refused",
                    f"the broker ends the connection at the subscription to {asked[0]}: it is not asked for any more",
                )
        self._client = None
        self._pending.clear()
        self._refused.clear()
        self._retry_s, self._retries = RETRY_FIRST_S, 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, topic: str, qos: int, why: str) -> None:
        self._note("subscription_refused", f"the broker refused the subscription to {topic}: {why}")
        self._why = why
        self._refused.append((topic, qos))
        if self._timer is None:
            self._timer = self._loop.call_later(self._retry_s, self._ask_again)
            self._retry_s = min(RETRY_MOST_S, 2 * self._retry_s)

    def _ask_again(self) -> None:
        self._timer = None
        self._retries += 1
        if self.are_exhausted:
            return
        refused, self._refused = self._refused, []
        if refused:
            self._ask(refused)
            self._flush()

    def _ask(self, wanted: list[tuple[str, int]]) -> None:
        assert self._client is not None
        _, mid = self._client.subscribe(wanted)
        if mid is not None:
            self._pending[mid] = wanted
