"""What a source remembers: a reading goes on once, and no two readings share an identity."""

from typing import Any
from zlib import crc32

import numpy as np
import pytest

from edge_runtime.readings import Receipt
from edge_runtime.stream.codecs.columns import Decoded
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.recent import Recent
from edge_runtime.stream.seen import FAR, GENERATION, MESSAGES, MOST_SAVED, Deliveries, Seen
from edge_runtime.system.counters import Counters

TOPIC = b"s/a"


class _Bench:
    """A memory, and a broker that delivers one message with one reading after the other."""

    def __init__(self, **given: Any) -> None:
        self.counters = Counters()
        self.noticed: list[str] = []
        self.given = given
        self.seen = self._make()
        self.link = 1
        self.number = 0
        self.acknowledged: list[int] = []

    def _make(self) -> Seen:
        return Seen(self.counters, notice=lambda reason, _: self.noticed.append(reason), **self.given)

    def restart(self) -> None:
        """A clean stop and a start."""
        saved = self.seen.save(OwedReceipts())
        self.seen, self.link = self._make(), self.link + 1
        self.seen.restore(saved, OwedReceipts())

    def receipt(self, number: int) -> Receipt:
        return Receipt(lambda: self.acknowledged.append(number), number)

    def deliver(
        self,
        content: bytes,
        identity: str | None = None,
        *,
        key: str | None = "a",
        time: float | None = None,
        number: int | None = None,
        dup: bool = False,
        receipt: Receipt | None = None,
    ) -> list[str | None] | None:
        """The identity that the reading goes on with, in a list; None where it is skipped."""
        if number is None:
            number = self.number = self.number + 1
        value = float(crc32(content) % 1000)
        decoded = Decoded(np.array([[value]], np.float32), [0], [None], [time], [identity])
        owed = receipt or self.receipt(number)
        known = self.seen.is_known_message(TOPIC, crc32(content), owed, self.link, repeated=dup)
        came = Deliveries(self.link, [TOPIC], [crc32(content)], [dup], [known], [owed])
        going = self.seen.admit(decoded, [key], came)
        return decoded.identities if going is None else None


def test_a_reading_that_comes_again_after_a_cut_link_is_skipped() -> None:
    """By its key, identity and content, whether its broker says DUP or has forgotten that it was sent."""
    bench = _Bench()
    assert bench.deliver(b"1", "7") == ["7"]
    assert bench.deliver(b"2", "8") == ["8"]
    bench.link += 1
    assert bench.deliver(b"1", "7", number=1, dup=True) is None
    assert bench.deliver(b"2", "8", number=900) is None
    assert bench.deliver(b"3", "9") == ["9"]
    assert bench.counters.skipped == {"redelivered": 2}
    assert bench.noticed == ["skipped redelivered"]


def test_the_same_identity_of_another_key_is_another_reading() -> None:
    """A sequence number counts within its key."""
    bench = _Bench()
    assert bench.deliver(b"1", "7", key="a") == ["7"]
    assert bench.deliver(b"1", "7", key="b") == ["7"]


def test_a_reading_without_identity_is_known_by_dup_packet_id_topic_and_content() -> None:
    """A constant sensor sends equal messages: only the one that was here is skipped."""
    bench = _Bench()
    receipts = [bench.receipt(number) for number in (1, 2, 3)]
    for receipt in receipts:
        assert bench.deliver(b"same", receipt=receipt) == [None]
    receipts[0].release()  # so that its broker need not send it again
    bench.link += 1
    assert bench.deliver(b"same", number=2, dup=True) is None
    assert bench.deliver(b"same", number=3, dup=True) is None
    assert bench.deliver(b"same", number=4, dup=True) == [None]  # was on the wire when the link broke
    assert bench.deliver(b"same", number=5) == [None]
    assert bench.counters.skipped == {"redelivered": 2}


def test_a_broker_that_numbers_anew_is_understood_by_what_is_owed_to_it() -> None:
    """It must send again what was not acknowledged; each such message explains one that comes."""
    bench = _Bench()
    owed = bench.receipt(1)
    bench.deliver(b"same", number=1, receipt=owed)
    bench.link += 1
    assert bench.deliver(b"same", number=71, dup=True) is None
    assert bench.deliver(b"same", number=72, dup=True) == [None]


def test_another_message_under_a_packet_id_that_was_free_again_is_no_repeat() -> None:
    """The broker used the number again for a message that was on the wire when the link broke."""
    bench = _Bench()
    first = bench.receipt(5)
    assert bench.deliver(b"1", number=5, receipt=first) == [None]
    first.release()
    bench.link += 1
    assert bench.deliver(b"2", number=5, dup=True) == [None]
    assert bench.counters.skipped == {}


def test_a_message_that_comes_again_is_acknowledged_when_the_first_one_is_safe() -> None:
    """Not before: a kill would lose the reading. Over several cut links too."""
    bench = _Bench()
    first, second, third = bench.receipt(1), bench.receipt(2), bench.receipt(3)
    first.hold()  # the outbox has its prediction
    bench.deliver(b"1", "7", number=5, receipt=first)
    first.release()
    for again in (second, third):
        bench.link += 1
        bench.deliver(b"1", "7", number=5, dup=True, receipt=again)
        again.release()  # the connection's own hold
    assert bench.acknowledged == []
    first.release()
    assert bench.acknowledged == [1, 2, 3]


def test_other_content_under_the_same_identity_is_a_reading_with_an_identity_of_its_own() -> None:
    """`{"id": 0}` in every message: four readings, four identities; the first of them is said."""
    bench = _Bench()
    found = [bench.deliver(content, "0") for content in (b"20", b"21", b"22", b"20")]
    assert found[0] == ["0"]
    assert len({str(each) for each in found}) == 4
    assert bench.counters.counts["identity_reused"] == 3
    assert bench.counters.skipped == {}
    assert bench.noticed == ["identity_reused"]


def test_an_equal_reading_under_an_identity_that_is_reused_is_a_reading() -> None:
    """A device's number as `id` and a value that stands still: nothing is skipped, and no identity comes twice."""
    bench = _Bench()
    bench.deliver(b"20", "0")
    bench.deliver(b"21", "0")
    found = [bench.deliver(b"21", "0") for _ in range(5)]
    assert found == [[None]] * 5  # the number of the start and a sequence number will be its id


def test_a_counter_that_wraps_gives_readings_even_where_they_are_equal() -> None:
    """A constant sensor with a counter of one byte: what comes 256 readings later is no repeat, new link or not."""
    bench = _Bench()
    for turn in range(3):
        for step in range(256):
            assert bench.deliver(b"%d" % step, str(step)) is not None
            if step == 100 and turn == 1:
                bench.link += 1
    assert bench.counters.skipped == {}
    assert bench.counters.counts["identity_reused"] == 512


def test_a_sender_that_repeats_at_once_sends_no_new_reading() -> None:
    """A gateway that did not hear its broker's acknowledgement: one reading, however far back within `FAR`."""
    bench = _Bench()
    for step in range(FAR):
        bench.deliver(b"%d" % step, f"n{step}")
    assert bench.deliver(b"1", "n1") is None
    assert bench.deliver(b"%d" % (FAR - 1), f"n{FAR - 1}") is None


@pytest.mark.parametrize(("between", "going"), [(FAR - 2, None), (FAR - 1, [None])])
def test_an_equal_reading_so_many_readings_later_is_no_repeat(between: int, going: Any) -> None:
    """On one link, where its sender cannot have sent it again: a reading of its own from `FAR` on."""
    bench = _Bench()
    assert bench.deliver(b"same", "0") == ["0"]
    for number in range(1, between + 1):
        assert bench.deliver(b"%d" % number, str(number)) == [str(number)]
    assert bench.deliver(b"same", "0") == going


@pytest.mark.parametrize(("number", "is_reused"), [(4001, False), (4000, True)])
def test_a_counter_that_goes_back_by_a_thousand_has_begun_anew(number: int, is_reused: bool) -> None:
    """By less it is a reading that comes late."""
    bench = _Bench()
    bench.deliver(b"1", "5000")
    (found,) = bench.deliver(b"2", str(number)) or [""]
    assert found == (f"{number}-{crc32(b'2'):08x}" if is_reused else str(number))
    assert bench.counters.counts["identity_reused"] == is_reused


def test_a_long_counter_that_begins_anew_is_noticed_when_its_identities_are_forgotten() -> None:
    """A counter of two bytes: it goes back by more than any sender that is late."""
    bench = _Bench()
    for step in range(0, 65_536, 4):
        bench.deliver(b"%d" % step, str(step))
    first = bench.deliver(b"new", "0")
    assert first is not None
    assert first != ["0"]
    assert bench.counters.counts["identity_reused"] == 1


def test_readings_of_one_message_are_never_repeats_of_each_other() -> None:
    """Two equal readings in an array, with a time in whole seconds as identity."""
    bench = _Bench()
    decoded = Decoded(np.ones((2, 1), np.float32), [0, 0], [None] * 2, [1795432744.0] * 2, ["1795432744"] * 2)
    came = Deliveries(1, [TOPIC], [1], [False], [False], [bench.receipt(1)])
    assert bench.seen.admit(decoded, ["a", "a"], came) is None
    assert decoded.identities == ["1795432744", None]


def test_a_reading_is_known_again_whatever_comes_beside_it() -> None:
    """Its message first came in one wake-up with an array of readings, and again by itself."""
    bench = _Bench()
    values = np.array([[5.0], [6.0], [7.0]], np.float32)
    decoded = Decoded(values, [0, 0, 1], [None] * 3, [None] * 3, ["5", "6", "7"])
    came = Deliveries(1, [TOPIC] * 2, [56, crc32(b"7")], [False] * 2, [False] * 2, [bench.receipt(1), bench.receipt(2)])
    assert bench.seen.admit(decoded, ["a"] * 3, came) is None
    bench.link += 1
    assert bench.deliver(b"7", "7", number=900) is None
    assert bench.counters.skipped == {"redelivered": 1}


def test_a_source_that_cannot_repeat_skips_nothing() -> None:
    """A serial line: equal lines are readings, and their identities stay apart."""
    bench = _Bench()
    for expected in (["7"], [None]):
        decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], ["7"])
        assert bench.seen.admit(decoded, [None]) is None
        assert decoded.identities == expected


@pytest.mark.parametrize(("late", "going"), [("take", [["3"], ["4"]]), ("drop", [None, ["4"]])])
def test_a_late_reading_is_taken_or_dropped_and_counted(late: str, going: Any) -> None:
    """Older than the newest of its key by more than the tolerance; another key has another clock."""
    bench = _Bench(late=late, late_tolerance=1.0)
    assert bench.deliver(b"1", "1", time=100.0) == ["1"]
    assert bench.deliver(b"2", "2", time=99.0) == ["2"]
    assert bench.deliver(b"3", "3", time=98.5) == going[0]
    assert bench.deliver(b"4", "4", time=10.0, key="b") == going[1]
    assert bench.counters.skipped == ({} if late == "take" else {"late": 1})
    assert bench.counters.counts["late"] == (1 if late == "take" else 0)


def test_a_stop_keeps_what_was_acknowledged_and_forgets_what_was_not() -> None:
    """The acknowledgement may not have arrived; what was not acknowledged must come again and be taken."""
    bench = _Bench()
    safe, owed = bench.receipt(1), bench.receipt(2)
    bench.deliver(b"1", "1", number=1, receipt=safe)
    bench.deliver(b"2", "2", number=2, receipt=owed)
    bench.deliver(b"x", number=3, receipt=bench.receipt(3))
    safe.release()
    bench.restart()
    assert bench.deliver(b"1", "1", number=1, dup=True) is None
    assert bench.deliver(b"2", "2", number=2, dup=True) == ["2"]


@pytest.mark.parametrize(("identities", "going"), [(["0", "0"], [None]), (["0", "1"], None)])
def test_an_identity_that_was_used_again_is_no_sign_of_a_repeat_after_a_stop(identities: list[str], going: Any) -> None:
    """A device's number as `id` and a value that stands still; beside it a counter, whose readings are known."""
    bench = _Bench()
    for number, identity in enumerate(identities):
        receipt = bench.receipt(number)
        bench.deliver(b"2%d" % number, identity, receipt=receipt)
        receipt.release()
    bench.restart()
    assert bench.deliver(b"21", identities[-1], number=77) == going


@pytest.mark.parametrize(("content", "going"), [(b"1", None), (b"2", [None])])
def test_a_message_in_a_window_that_was_saved_is_known_when_it_comes_again(content: bytes, going: Any) -> None:
    """By its packet id and its content, as without the stop; it is acknowledged with its window."""
    bench = _Bench()
    owed, again = OwedReceipts(), OwedReceipts()
    receipt = bench.receipt(5)
    bench.deliver(b"1", number=5, receipt=receipt)
    number = owed.number(receipt)  # a window holds it
    saved = bench.seen.save(owed)
    held = again.hold(number)
    bench.seen, bench.link = bench._make(), bench.link + 1
    bench.seen.restore(saved, again)
    repeat = bench.receipt(5)
    assert bench.deliver(content, number=5, dup=True, receipt=repeat) == going
    repeat.release()
    assert bench.acknowledged == ([] if going is None else [5])
    assert held is not None
    held.release()
    assert bench.acknowledged == [5]


def test_the_last_message_of_a_topic_is_known_over_a_stop() -> None:
    """So that a retained message is no new reading after it."""
    bench = _Bench()
    assert not bench.seen.is_last_of_topic(TOPIC, 5)
    bench.restart()
    assert bench.seen.is_last_of_topic(TOPIC, 5)
    assert not bench.seen.is_last_of_topic(TOPIC, 6)


def test_memory_is_bounded_but_for_what_is_not_acknowledged() -> None:
    """However many readings come; one that waits for its window is known for as long as it waits."""
    bench = _Bench()
    waiting = bench.receipt(1)
    bench.deliver(b"first", "first", number=1, receipt=waiting)
    for step in range(5 * GENERATION):
        done = bench.receipt(2 + step % 5000)
        bench.deliver(b"%d" % step, f"n{step}", number=2 + step % 5000, receipt=done)
        done.release()
    assert len(bench.seen._readings) <= 2 * GENERATION + 1
    assert len(bench.seen._messages) <= 2 * MESSAGES + 1
    saved = bench.seen.save(OwedReceipts())
    assert len(saved.readings) <= MOST_SAVED
    bench.link += 1
    assert bench.deliver(b"first", "first", number=1, dup=True) is None


def test_what_was_owed_when_it_was_looked_at_is_known_for_a_whole_generation_more() -> None:
    """Its acknowledgement may be lost with the link just after it was given."""
    recent: Recent[str, list[bool]] = Recent(10, lambda owed: owed[0])
    owed = [True]
    recent.put("kept", owed)
    for step in range(25):
        recent.put(str(step), [False])
    assert recent.get("kept") is owed
    owed[0] = False
    for step in range(8):
        recent.put(f"more {step}", [False])
    assert recent.get("kept") is owed
