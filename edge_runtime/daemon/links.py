"""The connections of a daemon: one for each broker and login, shared by all parts that name the same.

A broker's table identifies its connection, so a reload keeps the connection whose table has not changed.
"""

from collections.abc import Callable, Iterable

import msgspec

from edge_runtime.config.load import read_password
from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt.ack_coalescing import ACK_DELAY_S
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.messages import RenewedWill, Will
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop


class Links:
    """The connections, by their tables.

    Args:
        loop: the event loop.
        counters_of: the counters of a connection, by its name.
        commit_interval: of the outbox; an acknowledgement is read well before a prediction would be written for it.
        on_change: called after a link came up or went down, or a subscription was granted.
        keeps_session: whether brokers keep messages while the daemon is offline.
    """

    def __init__(
        self,
        loop: Loop,
        counters_of: Callable[[str], Counters],
        *,
        commit_interval: float,
        on_change: Callable[[], None],
        keeps_session: bool = True,
    ) -> None:
        self._keeps_session = keeps_session
        self._loop = loop
        self._counters_of = counters_of
        self._ack_patience = min(ACK_DELAY_S, commit_interval / 2 or ACK_DELAY_S)
        self._on_change = on_change
        self._open: dict[BrokerTable, AnyConnection] = {}
        self._started: set[BrokerTable] = set()

    @property
    def all(self) -> list[AnyConnection]:
        """Every connection, in the order in which they were made."""
        return list(self._open.values())

    def get(self, broker: BrokerTable, name: str, will: Will | RenewedWill | None = None) -> AnyConnection:
        """The connection to a broker, or to the first of several that answers; not started when it is new."""
        found = self._open.get(broker)
        if found is not None:
            return found
        made = self._open[broker] = self._make(broker, name, will)
        made.on_change.append(self._on_change)
        return made

    def start(self) -> None:
        """Start those that are new."""
        for broker, connection in self._open.items():
            if broker not in self._started:
                self._started.add(broker)
                connection.start()

    def keep(self, wanted: Iterable[BrokerTable]) -> None:
        """End every connection whose table is not among these."""
        kept = set(wanted)
        for broker in [broker for broker in self._open if broker not in kept]:
            self._started.discard(broker)
            connection = self._open.pop(broker)
            connection.stop()
            connection.on_change.clear()

    def _make(self, broker: BrokerTable, name: str, will: Will | RenewedWill | None) -> AnyConnection:
        counters = self._counters_of(name)

        def connect(url: str) -> Connection:
            assert broker.client_id is not None, "config.load sets it"
            return Connection(
                msgspec.structs.replace(broker, url=url, urls=()),
                name=name,
                client_id=broker.client_id,
                password=lambda: read_password(broker),
                loop=self._loop,
                counters=counters,
                will=will,
                ack_patience=self._ack_patience,
                keeps_session=self._keeps_session,
            )

        if not broker.urls:
            return connect(broker.url)
        from edge_runtime.mqtt.failover import Failover  # noqa: PLC0415 - only where several brokers are configured

        return Failover(
            (broker.url, *broker.urls),
            connect,
            name=name,
            return_after=broker.return_after,
            loop=self._loop,
            counters=counters,
            will=None if callable(will) else will,  # one that is renewed belongs to one broker
        )
