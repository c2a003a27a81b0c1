"""Types of a connection: a received message, the last will, and the callback with the result of a publish."""

from collections.abc import Callable

import msgspec
from paho.mqtt.properties import Properties

from edge_runtime.readings import Receipt


class Message(msgspec.Struct, eq=False):
    """One received message: its topic as bytes (which may be no UTF-8), and the receipt for QoS 1.

    A handler that uses the message sets `claimed`; an unclaimed one is counted as `unmatched_topic`. `repeated` is
    MQTT's DUP flag. `link` is the unique number of its connection.
    """

    topic: bytes
    payload: bytes
    receipt: Receipt | None
    claimed: bool = False
    properties: Properties | None = None
    retained: bool = False
    repeated: bool = False
    link: int = 0


class Will(msgspec.Struct, frozen=True):
    """The message that the broker publishes when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes
    retain: bool = True


RenewedWill = Callable[[], Will]  # makes the will of each connection
OnOutcome = Callable[[bool], None]  # True: the broker has it; False: the broker refused it for good
Handler = Callable[[list[Message]], None]  # takes the messages of one wake-up
