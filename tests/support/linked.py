"""One connection of ours on a loop of its own, and what came over it."""

from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime.config.tables import BrokerTable
from edge_runtime.mqtt import ack_coalescing
from edge_runtime.mqtt.connection import Connection
from edge_runtime.mqtt.hot_path import HotPath
from edge_runtime.mqtt.messages import Message, Will
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support.waiting import Deadline


class LinkedClient:
    """A connection that has been started.

    Args:
        url: the broker.
        filters: what it subscribes to.
        qos: of them.
        hold: keep every receipt of a message.
        password: what it logs in with.
        will: of the connection.
        client_id: of the connection.
        ack_patience: as of `Connection`.
        table: further keys of `[upstream]`.
    """

    def __init__(
        self,
        url: str,
        *filters: str,
        qos: int = 1,
        hold: bool = False,
        password: str | None = None,
        will: Will | None = None,
        client_id: str = "edge-test",
        ack_patience: float = ack_coalescing.ACK_DELAY_S,
        **table: Any,
    ) -> None:
        settings = msgspec.convert({"url": url, "reconnect_min": 0.05, "reconnect_max": 0.2} | table, BrokerTable)
        self.loop, self.counters = Loop(), Counters()
        self.messages: list[Message] = []
        self.states: list[str] = []
        self.hold = hold
        self.connection = Connection(
            settings,
            name="upstream",
            client_id=client_id,
            password=lambda: password,
            loop=self.loop,
            counters=self.counters,
            will=will,
            ack_patience=ack_patience,
        )
        self.connection.on_change.append(lambda: self.states.append(self.connection.state))
        if filters:
            self.connection.subscribe(list(filters), qos, self.take)
        self.connection.start()

    @property
    def path(self) -> HotPath:
        """The present connection's hot path."""
        path = self.connection._path
        assert path is not None
        return path

    def take(self, messages: list[Message]) -> None:
        self.messages += messages
        if self.hold:
            for message in messages:
                if message.receipt is not None:
                    message.receipt.hold()

    def answer(self, qos: int, outcome: Callable[[bool], None]) -> None:
        """Answer every message to `in/#` with one to `out/x`. Before it is up only."""

        def publish(messages: list[Message]) -> None:
            for _ in messages:
                assert self.connection.publish("out/x", b"x", qos=qos, outcome=outcome)

        self.connection.subscribe(["in/#"], 1, publish)

    def until(self, condition: Callable[[], object], what: str, deadline: float = 20.0) -> None:
        """Serve the loop until the condition holds.

        Raises:
            AssertionError: it does not.
        """
        end = Deadline(deadline)
        while not condition():
            if end.over:
                raise AssertionError(f"waited {deadline:g} s in vain for {what}: {self.connection.state}")
            self.loop.run_once(0.05)

    def up(self) -> "LinkedClient":
        self.until(lambda: self.connection.ready, "the connection to be ready")
        return self

    def close(self) -> None:
        """End it."""
        self.connection.stop()
        self.loop.close()
