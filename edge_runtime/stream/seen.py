"""The memory of a source, by which each reading passes once and no two readings share an identity. Pure.

A broker resends a message whose acknowledgement it has not received: after a cut link, a restart, a stop. The message
has the DUP flag and its old packet id, or, from a broker that was killed, looks new. A reading is recognised

- by its key and identity, and its content, if it has an identity that is not used twice;
- else by DUP, packet id, topic and content of its message; without the packet id if its broker assigns new ones.

A recognised reading is skipped and counted. Its message is acknowledged together with the first message of the same
reading. A used identity with other content is a new reading: it is counted as `identity_reused` and gets an identity of
its own. Its key counts as unreliable for a while: meanwhile equal readings of it are new readings, not repeats.

Memory is bounded: the last `GENERATION` to twice as many readings, and all that are not acknowledged yet; the cost of a
reading and a key is measured (docs/guarantees.md). Weak points: the memory is lost with a kill, so that an identity
used again after it is not noticed; a reading without identity, equal to an earlier one with the same packet id and in
transit when the link broke, is taken for a repeat.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final
from zlib import crc32

import msgspec

from edge_runtime.readings import NOTHING, Receipt
from edge_runtime.stream.codecs.columns import Decoded
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.recent import Recent
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

GENERATION = 4096
MESSAGES = 1024  # brokers allow 20 (mosquitto) to some hundreds unacknowledged, which are kept in addition
TOPICS = 10_000
KEYS = 10_000
# An equal reading with the same identity, so many readings of its key later on the same link, is no repeat: a sender
# repeats at once, and the shortest counter that wraps has 256 steps.
FAR = 128
RESTART = 1000  # a counter that goes back by so much has wrapped, or its sensor has restarted
MOST_SAVED = 1024  # readings and messages of a source that are kept over a stop
Notice = Callable[[str, str], None]
_MEANINGS = {
    "skipped redelivered": (logging.INFO, "readings that are known come again: they are skipped and counted"),
    "skipped retained": (logging.INFO, "retained messages that are known come again: they are skipped and counted"),
    "skipped late": (logging.WARNING, "readings are older than the newest of their key: skipped and counted"),
    "late": (logging.WARNING, "readings are older than the newest of their key: taken as they come, and counted"),
    "identity_reused": (
        logging.WARNING,
        'different readings have one identity: name a member that differs with `identity`, or set identity = "none"',
    ),
}
_log = get_logger("source")
_REPEATED: Final = "\0"  # occurs in no identity: means "skip this reading"


class SeenReading(msgspec.Struct, eq=False, gc=False):
    """One received reading.

    Attributes:
        digest: of its content.
        at: its position among the readings of its key.
        message: the number of its message at this source; readings of one message are never repeats of each other.
        receipt: the receipt of its message; None once released.
    """

    digest: int
    at: int
    message: int
    receipt: Receipt | None


def _is_waiting(receipt: Receipt) -> bool:
    return not receipt.is_released


def _owed_for(entry: SeenReading) -> Receipt | None:
    """The receipt of a reading while it is not released; a released one is dropped."""
    if entry.receipt is not None and entry.receipt.is_released:
        entry.receipt = None
    return entry.receipt


def _is_owed(entry: SeenReading) -> bool:
    return _owed_for(entry) is not None


def _number(entry: SeenReading, owed: OwedReceipts) -> int | None:
    receipt = _owed_for(entry)
    return None if receipt is None else owed.known(receipt)


class _Key:
    """What is remembered of one key."""

    __slots__ = ("count", "high", "link", "newest", "reused_at")

    def __init__(self) -> None:
        self.count = 0
        self.link = 0  # the connection of its last new reading
        self.reused_at = -GENERATION
        self.high = -1  # the highest identity that is a number
        self.newest = -math.inf  # its newest own time


class Deliveries(msgspec.Struct, eq=False, gc=False):
    """How the messages of one wake-up were delivered; one item a frame."""

    link: int
    topics: list[bytes]
    digests: list[int]  # of the payloads
    repeated: list[bool]  # the DUP flag
    known: list[bool]  # recognised as repeats
    receipts: list[Receipt | None]


class SavedSeen(msgspec.Struct, array_like=True):
    """The state kept over a stop: readings and messages whose acknowledgement was sent but may not have arrived.

    Those with a receipt in a saved window are listed separately, with the number of the receipt.
    """

    readings: list[tuple[str | None, str, int]] = []
    messages: list[tuple[int, int]] = []
    topics: list[tuple[bytes, int]] = []
    keys: list[tuple[str | None, int, bool]] = []
    owed_readings: list[tuple[str | None, str, int, int]] = []
    owed_messages: list[tuple[int, int, int]] = []
    filters: list[str] = []  # what the source had subscribed to


class Seen:
    """The memory of one source.

    Args:
        counters: counts `skipped` by reason, `identity_reused` and `late`.
        late: `drop` skips a late reading.
        late_tolerance: seconds; see `OriginTable`.
        notice: called for the first reading of each reason, with its description.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        late: str = "take",
        late_tolerance: float = 0.0,
        notice: Notice = lambda _reason, _where: None,
    ) -> None:
        self._counters = counters
        self._notice = notice
        self._noticed: set[str] = set()
        self._link = 0  # the connection of the present batch
        self._messages_before = 0
        self._drops_late = late == "drop"
        self._tolerance = late_tolerance
        self._readings: Recent[tuple[str | None, str] | tuple[str | None, str, int], SeenReading] = Recent(
            GENERATION, _is_owed, looks=True
        )
        # A message is kept by its own receipt, which has its mark and its link.
        self._messages: Recent[int, Receipt] = Recent(MESSAGES, _is_waiting)
        self._topics: Recent[bytes, int] = Recent(TOPICS)
        self._keys: Recent[str | None, _Key] = Recent(KEYS)

    def note_message(self, topic: bytes, digest: int, receipt: Receipt | None, link: int, *, with_topic: bool) -> None:
        """Record a message that is no repeat, and, `with_topic`, as the last one of its topic; as the methods below."""
        if receipt is not None and receipt.number:
            receipt.mark, receipt.link = crc32(topic, digest), link
            messages = self._messages
            messages.young[receipt.number] = receipt
            if len(messages.young) >= messages.limit:
                messages.turn()
        if with_topic:
            topics = self._topics
            topics.young[topic] = digest
            if len(topics.young) >= topics.limit:
                topics.turn()

    def note_topic(self, topic: bytes, digest: int) -> None:
        """Record the content of the last message of a topic."""
        self._topics.put(topic, digest)

    def is_last_of_topic(self, topic: bytes, digest: int) -> bool:
        """Whether the last message of this topic had this content; also records this content."""
        last = self._topics.get(topic)
        self._topics.put(topic, digest)
        return last == digest

    def admit(self, decoded: Decoded, keys: Sequence[str | None], came: Deliveries | None = None) -> list[int] | None:
        """The readings that pass: None for all of them, the usual case. Used identities are replaced in place.

        Args:
            decoded: the readings of one wake-up.
            keys: the key of each.
            came: how their messages were delivered; None for a source that never repeats a reading.
        """
        known = came is not None and True in came.known
        count = len(decoded.rows)
        if not known and decoded.identities.count(None) == count and decoded.times.count(None) == count:
            return None
        going = []
        digests = self._digests(decoded, came)
        message, receipt, repeated = None, None, False
        self._link = 0 if came is None else came.link
        for index, frame in enumerate(decoded.rows):
            if came is not None:
                if came.known[frame]:
                    self.skip("redelivered", came.topics[frame].decode(errors="replace"))
                    continue
                message, receipt, repeated = self._messages_before + frame, came.receipts[frame], came.repeated[frame]
            if self._goes_on(
                decoded, index, keys[index], digests[index], message=message, receipt=receipt, repeated=repeated
            ):
                going.append(index)
        self._messages_before += decoded.rows[-1] + 1
        return None if len(going) == count else going

    def admit_one(self, decoded: Decoded, key: str | None, digest: int, *, receipt: Receipt | None, link: int) -> bool:
        """`admit` for the only reading of the only message of a wake-up, which has no DUP flag."""
        self._link = link
        message = self._messages_before
        self._messages_before = message + 1
        return self._goes_on(decoded, 0, key, digest, message=message, receipt=receipt, repeated=False)

    def _goes_on(
        self,
        decoded: Decoded,
        index: int,
        key: str | None,
        digest: int,
        *,
        message: int | None,
        receipt: Receipt | None,
        repeated: bool,
    ) -> bool:
        """Whether one reading passes; a used identity is replaced in place."""
        identity, time = decoded.identities[index], decoded.times[index]
        if identity is None and time is None:
            return True
        state = self._keys.young.get(key) or self._refreshed_key(key)
        if identity is not None:
            own = self._identify(state, (key, identity), digest, message=message, receipt=receipt, repeated=repeated)
            if own is not identity:
                if own == _REPEATED:
                    self.skip("redelivered", _place(key, identity))
                    return False
                decoded.identities[index] = own
        if time is not None:
            if time >= state.newest:
                state.newest = time
            else:
                return not self._is_late(state, time, key)
        return True

    def _refreshed_key(self, key: str | None) -> _Key:
        """The state of a key, which counts as a recent one from now on, however many others come."""
        state = self._keys.get(key) or _Key()
        self._keys.put(key, state)
        return state

    @staticmethod
    def _digests(decoded: Decoded, came: Deliveries | None) -> Sequence[int]:
        """The digest of each reading: of its message's bytes if that has one reading, else of its numbers and time.

        The choice depends on the message alone, since it may be repeated in a batch with other messages.
        """
        rows = decoded.rows
        if came is not None and (len(rows) == 1 or len(set(rows)) == len(rows)):
            return [came.digests[frame] for frame in rows]
        readings = Counter(rows)
        return [
            came.digests[frame]
            if came is not None and readings[frame] == 1
            else crc32(repr(time).encode(), crc32(values.tobytes()))
            for frame, values, time in zip(rows, decoded.values, decoded.times, strict=True)
        ]

    def is_known_message(
        self, topic: bytes, digest: int, receipt: Receipt | None, link: int, *, repeated: bool
    ) -> bool:
        """Whether a message is a repeat, by its DUP flag and receipt; it is recorded in either case.

        Args:
            topic: where it was published.
            digest: of its payload.
            receipt: its receipt; None if it cannot be resent.
            link: the number of its connection.
            repeated: the DUP flag.
        """
        if receipt is None or not receipt.number:
            return False
        earlier = self._messages.get(receipt.number) if repeated else None
        self.note_message(topic, digest, receipt, link, with_topic=False)
        if not repeated:
            return False
        if earlier is not None and earlier.mark != receipt.mark:
            if not earlier.is_released:  # it comes under another number, after this one
                self._messages.put(-receipt.number, earlier)
            earlier = None
        if earlier is None:
            earlier = self._owed_like(receipt)
        if earlier is None:
            return False
        if not earlier.is_released:
            earlier.pass_on(receipt)
        self._messages.put(receipt.number, earlier)
        return True

    def _owed_like(self, receipt: Receipt) -> Receipt | None:
        """An unacknowledged message of an earlier connection, for brokers that resend it with a new number.

        A message already matched on this connection is not matched again.
        """
        for earlier in self._messages.values():
            if earlier.mark == receipt.mark and earlier.link != receipt.link and not earlier.is_released:
                last = earlier.heirs[-1] if earlier.heirs else None
                if last is None or last is receipt or last.link != receipt.link:
                    return earlier
        return None

    def _identify(
        self,
        state: _Key,
        name: tuple[str | None, str],
        digest: int,
        *,
        message: int | None,
        receipt: Receipt | None,
        repeated: bool,
    ) -> str | None:
        """The identity that the reading passes with, None for none; `_REPEATED` if it is a repeat."""
        readings, identity = self._readings, name[1]
        entry = readings.young.get(name) or readings.old.get(name)
        number = int(identity) if identity.isdecimal() and len(identity) < 16 else None
        is_same = is_reused = False
        if entry is not None:
            is_same = entry.digest == digest
            if (
                is_same
                and message is not None
                and entry.message != message
                and self._is_reliable(state)
                and (repeated or state.link != self._link or state.count - entry.at < FAR)
            ):
                _pass_on(entry, receipt)
                return _REPEATED
            is_reused = True
        elif number is not None and state.high - number >= RESTART:
            is_reused = True
        new = SeenReading(digest, state.count, -1 if message is None else message, receipt)
        readings.young[name] = new
        if len(readings.young) >= readings.limit:
            readings.turn()
        if is_reused:
            self._count("identity_reused", _place(*name))
            state.reused_at = state.count
        if number is not None and (is_reused or number > state.high):
            state.high = number
        state.count += 1
        state.link = self._link
        if not is_reused:
            return identity
        own = (*name, digest)
        if is_same or readings.get(own) is not None:
            return None  # its content is not different from an earlier one either
        readings.put(own, new)
        return f"{identity}-{digest:08x}"

    @staticmethod
    def _is_reliable(state: _Key) -> bool:
        return state.count - state.reused_at >= GENERATION

    def _is_late(self, state: _Key, time: float, key: str | None) -> bool:
        """Whether to skip a reading because it is older than another one of its key."""
        if state.newest - time <= self._tolerance:
            return False
        if self._drops_late:
            self.skip("late", _place(key, f"{state.newest - time:g} s"))
            return True
        self._count("late", _place(key, f"{state.newest - time:g} s"))
        return False

    def skip(self, reason: str, where: str) -> None:
        """Count a skipped reading."""
        self._counters.skipped[reason] += 1
        self._notice_first(f"skipped {reason}", where)

    def _count(self, reason: str, where: str) -> None:
        self._counters.counts[reason] += 1
        self._notice_first(reason, where)

    def _notice_first(self, reason: str, where: str) -> None:
        if reason not in self._noticed:
            self._noticed.add(reason)
            self._notice(reason, where)

    def take_over(self, other: "Seen") -> None:
        """Take over the memory of another one, with its unacknowledged messages."""
        self._readings, self._messages = other._readings, other._messages  # noqa: SLF001 - of our own kind
        self._topics, self._keys = other._topics, other._keys  # noqa: SLF001
        self._messages_before = other._messages_before  # noqa: SLF001

    def save(self, owed: OwedReceipts) -> SavedSeen:
        """The state that a stop keeps.

        Readings that are neither acknowledged nor in a saved window are left out: the broker resends them, and they
            then pass.
        """
        readings = [
            (name[0], name[1], entry.digest)
            for name, entry in self._readings.items()
            if len(name) == 2 and not _is_owed(entry)
        ]
        messages = [(number, receipt.mark) for number, receipt in self._messages.items() if receipt.is_released]
        keys = [
            (key, state.high, not self._is_reliable(state))
            for key, state in self._keys.items()
            if state.high >= 0 or not self._is_reliable(state)
        ]
        waiting = [
            (name[0], name[1], entry.digest, number)
            for name, entry in self._readings.items()
            if len(name) == 2 and (number := _number(entry, owed)) is not None
        ]
        sent = [
            (name, receipt.mark, number)
            for name, receipt in self._messages.items()
            if not receipt.is_released and (number := owed.known(receipt)) is not None
        ]
        topics = list(self._topics.items())
        return SavedSeen(readings[-MOST_SAVED:], messages[-MOST_SAVED:], topics, keys, waiting, sent)

    def restore(self, saved: SavedSeen, owed: OwedReceipts) -> None:
        """Restore the state saved by an earlier start, after the windows have taken their receipts."""
        for key, identity, digest, number in saved.owed_readings:
            if (receipt := owed.held(number)) is not None:
                self._readings.put((key, identity), SeenReading(digest, 0, -1, receipt))
        for packet, digest, number in saved.owed_messages:
            if (receipt := owed.held(number)) is not None:
                receipt.mark = digest
                self._messages.put(packet, receipt)
        for key, high, is_unreliable in saved.keys:
            state = self._refreshed_key(key)
            state.high, state.reused_at = high, 0 if is_unreliable else -GENERATION
        for key, identity, digest in saved.readings:
            self._readings.put((key, identity), SeenReading(digest, 0, -1, None))
        for number, digest in saved.messages:
            self._messages.put(number, Receipt(NOTHING, number, holds=0, mark=digest))
        for topic, digest in saved.topics:
            self._topics.put(topic, digest)


def _place(key: str | None, what: str) -> str:
    return what if key is None else f"{what} of {key}"


def log_first(source: str) -> Notice:
    """A callback that logs the first reading of each reason of a source, with the meaning and the remedy."""

    def notice(reason: str, where: str) -> None:
        level, text = _MEANINGS[reason]
        _log.log(level, text, extra=fields(source=source, first=where))

    return notice


def _pass_on(entry: SeenReading, receipt: Receipt | None) -> None:
    """A repeat arrived: acknowledge its message when the prediction of the first one is safe."""
    first = _owed_for(entry)
    if receipt is not None and first is not None and first is not receipt:
        first.pass_on(receipt)
