"""What goes over a connection: a received message, the last will, and the callback with the result of a publish."""

from collections.abc import Callable

import msgspec
from paho.mqtt.properties import Properties

from edge_runtime.readings import Receipt


class Message(msgspec.Struct, eq=False):
    """One message as it came: its topic as bytes (which may be no UTF-8), and the receipt for QoS 1.

    A handler sets `claimed` when the message is its own; an unclaimed one is counted as `unmatched_topic`.
    `repeated` is MQTT's DUP flag. `link` is the number of the connection that brought it, which no other has.
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
    """What the broker publishes in our place when the connection ends without a DISCONNECT."""

    topic: str
    payload: bytes
    retain: bool = True


RenewedWill = Callable[[], Will]  # makes that of each connection
OnOutcome = Callable[[bool], None]  # True: the broker has it; False: the broker refused it for good
Handler = Callable[[list[Message]], None]  # takes the messages of one wake-up
