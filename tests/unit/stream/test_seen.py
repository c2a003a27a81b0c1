"""What a source remembers: a reading goes on once, and no two readings share an identity."""

from typing import Any
from zlib import crc32

import numpy as np
import pytest

from edge_runtime.readings import Receipt
from edge_runtime.stream.codecs.columns import Decoded
from edge_runtime.stream.holding import OwedReceipts
from edge_runtime.stream.recent import Recent
from edge_runtime.stream.seen import (
    FAR,
    GENERATION,
    KEYS,
    MESSAGES,
    MOST_SAVED,
    RESTART,
    TOPICS,
    Deliveries,
    Seen,
    log_first,
)
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
    """`{"id": 0}` in every message: no identity comes twice, and the first case is logged."""
    bench = _Bench()
    found = [bench.deliver(content, "0") for content in (b"20", b"21", b"22", b"20", b"21")]
    assert found == [["0"], *([f"0-{crc32(content):08x}"] for content in (b"21", b"22", b"20")), [None]]
    assert bench.counters.counts["identity_reused"] == 4
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
    assert bench.deliver(b"0", "n0") is not None  # `FAR` back: a counter that wraps


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
        receipt = bench.receipt(1)
        bench.deliver(b"%d" % step, str(step), receipt=receipt)
        receipt.release()
    assert bench.deliver(b"new", "0") == [f"0-{crc32(b'new'):08x}"]
    assert bench.deliver(b"newer", "4") == ["4"]  # it counts from here on
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
    readings = messages = topics = 0
    for step in range(5 * GENERATION):
        done = bench.receipt(2 + step % 5000)
        bench.deliver(b"%d" % step, f"n{step}", number=2 + step % 5000, receipt=done)
        bench.seen.note_message(b"t%d" % step, 1, None, 1, with_topic=True)
        done.release()
        readings, messages = max(readings, len(bench.seen._readings)), max(messages, len(bench.seen._messages))
        topics = max(topics, len(bench.seen._topics))
    assert (readings, messages, topics) == (2 * GENERATION, 2 * MESSAGES, 2 * TOPICS - 1)  # and the one that waits
    held = [name[1] for name, entry in bench.seen._readings.old.items() if entry.receipt is not None]
    assert len(held) == 2  # the one that waits, and the one during which the generation ended
    saved = bench.seen.save(OwedReceipts())
    assert len(saved.readings) == len(saved.messages) == MOST_SAVED
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


def _batch_of(bench: _Bench, *readings: tuple[int, bytes, str], frames: int) -> list[str | None] | None:
    """One wake-up with several messages: the frame, the content and the identity of each reading."""
    values = np.array([[float(crc32(content) % 1000)] for _, content, _ in readings], np.float32)
    decoded = Decoded(
        values,
        [frame for frame, _, _ in readings],
        [None] * len(readings),
        [None] * len(readings),
        [identity for _, _, identity in readings],
    )
    contents = [b"".join(content for frame, content, _ in readings if frame == each) for each in range(frames)]
    receipts: list[Receipt | None] = [bench.receipt(1000 + frame) for frame in range(frames)]
    came = Deliveries(
        bench.link, [TOPIC] * frames, [crc32(each) for each in contents], [False] * frames, [False] * frames, receipts
    )
    going = bench.seen.admit(decoded, ["a"] * len(readings), came)
    identities: list[str | None] = decoded.identities
    return identities if going is None else [identities[index] for index in going]


def test_the_constants_are_those_of_their_reasons() -> None:
    """The shortest counter that wraps has 256 steps, and a repeat comes within half of them."""
    assert 2 * FAR == 256
    assert (RESTART, MOST_SAVED, TOPICS) == (1000, 1024, 10_000)


def test_a_repeat_is_found_among_the_messages_of_a_later_wake_up() -> None:
    """At each of their places."""
    bench = _Bench()
    assert _batch_of(bench, (0, b"0", "n0"), (1, b"1", "n1"), frames=2) == ["n0", "n1"]
    assert _batch_of(bench, (0, b"2", "n2"), (1, b"3", "n3"), (2, b"0", "n0"), frames=3) == ["n2", "n3"]
    assert _batch_of(bench, (0, b"2", "n2"), (1, b"4", "n4"), frames=2) == ["n4"]
    assert bench.counters.skipped == {"redelivered": 2}


def test_two_readings_of_one_message_under_one_identity_have_identities_of_their_own() -> None:
    """Each is known by its own numbers, since the message's bytes are those of both."""
    bench = _Bench()
    expected = f"7-{crc32(b'None', crc32(np.array([float(crc32(b'y') % 1000)], np.float32).tobytes())):08x}"
    found = _batch_of(bench, (0, b"x", "7"), (0, b"y", "7"), frames=1)
    assert found == ["7", expected]


def test_a_reading_without_identity_passes_beside_one_with_an_identity() -> None:
    """A wake-up of both kinds, from a source whose messages may be repeated."""
    bench = _Bench()
    decoded = Decoded(np.ones((2, 1), np.float32), [0, 1], [None] * 2, [None] * 2, [None, "7"])
    receipts: list[Receipt | None] = [bench.receipt(1), bench.receipt(2)]
    came = Deliveries(1, [TOPIC] * 2, [1, 2], [False] * 2, [False] * 2, receipts)
    assert bench.seen.admit(decoded, ["a", "a"], came) is None
    assert decoded.identities == [None, "7"]


def test_after_a_cut_link_a_repeat_is_known_however_far_back() -> None:
    """On the link that brought it, an equal reading so far back is a counter that wraps, unless it is marked DUP."""
    for link, dup, is_repeat in ((1, False, False), (1, True, True), (2, False, True)):
        bench = _Bench()
        for step in range(2 * FAR):
            assert bench.deliver(b"%d" % step, f"n{step}") is not None
        bench.link = link
        assert (bench.deliver(b"5", "n5", number=900, dup=dup) is None) == is_repeat


def test_a_repeat_of_an_older_generation_is_known() -> None:
    """The last `GENERATION` readings are remembered, whichever came since."""
    bench = _Bench()
    bench.deliver(b"first", "first", number=1, receipt=Receipt(lambda: None, 1, holds=0))
    for step in range(GENERATION - 1):
        bench.deliver(b"%d" % step, f"n{step}", receipt=Receipt(lambda: None, 2 + step, holds=0))
    bench.link += 1
    assert bench.deliver(b"first", "first", number=60_000) is None


def test_a_single_message_is_judged_as_one_among_several() -> None:
    """By its link and its place: a repeat at once, one of an earlier link, and a counter that wraps."""
    bench = _Bench()

    def single(content: bytes, identity: str, link: int = 1) -> bool:
        decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], [identity])
        return bench.seen.admit_one(decoded, "a", crc32(content), receipt=bench.receipt(1), link=link)

    assert [single(b"%d" % step, f"n{step}") for step in range(2 * FAR)] == [True] * 2 * FAR
    assert not single(b"255", "n255")
    assert not single(b"5", "n5", link=2)
    assert single(b"5", "m5", link=2)
    assert _batch_of(bench, (0, b"5", "m5"), frames=1) == []
    wrapping = _Bench()
    bench = wrapping
    assert [single(b"%d" % step, f"n{step}") for step in range(2 * FAR)] == [True] * 2 * FAR
    assert single(b"5", "n5")


def test_every_message_after_a_start_may_be_a_repeat() -> None:
    """Without DUP, from a broker that was killed: the first, the second and the third."""
    bench = _Bench()
    for step in range(3):
        receipt = bench.receipt(step + 1)
        bench.deliver(b"%d" % step, f"n{step}", receipt=receipt)
        receipt.release()
    bench.restart()
    assert [bench.deliver(b"%d" % step, f"n{step}", number=800 + step) for step in range(3)] == [None] * 3
    assert bench.deliver(b"0", "n0", key="b") == ["n0"]
    bench.restart()

    def single(content: bytes, identity: str) -> bool:
        decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], [identity])
        return bench.seen.admit_one(decoded, "a", crc32(content), receipt=bench.receipt(1), link=bench.link)

    assert [single(b"%d" % step, f"n{step}") for step in range(3)] == [False] * 3


def test_a_message_without_identity_that_was_acknowledged_before_a_stop_is_acknowledged_again() -> None:
    """Its acknowledgement may have been lost with the link."""
    bench = _Bench()
    for number in range(1, 4):
        receipt = bench.receipt(number)
        bench.deliver(b"same", number=number, receipt=receipt)
        receipt.release()
    bench.restart()
    again = bench.receipt(30)
    again.number = 3
    assert bench.deliver(b"same", number=3, dup=True, receipt=again) is None
    again.release()
    assert bench.acknowledged == [1, 2, 3, 30]
    assert bench.deliver(b"other", number=2, dup=True) == [None]


@pytest.mark.parametrize("identity", ["7", None])
def test_what_a_saved_window_holds_is_owed_over_a_stop(identity: str | None) -> None:
    """A message of it that comes again is no reading, and is acknowledged with the window."""
    bench = _Bench()
    held, other = bench.receipt(5), bench.receipt(6)
    held.hold()
    bench.deliver(b"x", identity, number=5, receipt=held)
    bench.deliver(b"y", None if identity is None else "8", number=6, receipt=other)
    held.release()
    owed = OwedReceipts()
    number = owed.number(held)
    saved = bench.seen.save(owed)
    bench.seen, bench.link, back = bench._make(), 2, OwedReceipts()
    window = back.hold(number)
    bench.seen.restore(saved, back)
    again = Receipt(lambda: bench.acknowledged.append(50), 5)
    bench.acknowledged.clear()
    if identity is not None:
        again.number = 900  # known by its identity alone
    assert bench.deliver(b"x", identity, number=again.number, dup=identity is None, receipt=again) is None
    again.release()
    assert bench.acknowledged == []
    assert window is not None
    window.release()
    assert bench.acknowledged == [50]
    assert bench.deliver(b"y", None if identity is None else "8", number=6, dup=True) is not None


def test_a_reading_of_a_saved_window_is_known_in_every_message_after_the_start() -> None:
    """By its identity, whichever message it comes in."""
    bench = _Bench()
    receipts = [bench.receipt(number) for number in range(1, 4)]
    for number, receipt in enumerate(receipts, 1):
        bench.deliver(b"%d" % number, f"n{number}", receipt=receipt)
    owed, back = OwedReceipts(), OwedReceipts()
    numbers = [owed.number(receipt) for receipt in receipts]
    saved = bench.seen.save(owed)
    assert (saved.readings, saved.messages) == ([], [])
    bench.seen, bench.link = bench._make(), 2
    for each in numbers:
        back.hold(each)
    bench.seen.restore(saved, back)
    assert [bench.deliver(b"%d" % number, f"n{number}", number=900 + number) for number in (1, 2, 3)] == [None] * 3


def test_a_reading_whose_window_was_not_kept_comes_again() -> None:
    """Its receipt is held by nothing after the start."""
    bench = _Bench()
    receipt = bench.receipt(1)
    bench.deliver(b"x", "7", number=1, receipt=receipt)
    owed = OwedReceipts()
    owed.number(receipt)
    saved = bench.seen.save(owed)
    bench.seen, bench.link = bench._make(), 2
    bench.seen.restore(saved, OwedReceipts())
    assert bench.deliver(b"x", "7", number=1, dup=True) == ["7"]


def test_an_identity_that_is_reused_is_remembered_as_such_over_a_stop() -> None:
    """So that an equal reading of the key is a reading after the start as before it."""
    bench = _Bench()
    for content in (b"20", b"21"):
        receipt = Receipt(lambda: None, 1, holds=0)
        bench.deliver(content, "sensor", receipt=receipt)
        bench.deliver(content, "n1" if content == b"20" else "n2", key="b", receipt=receipt)
        bench.deliver(content, "0" if content == b"20" else "1", key="c", receipt=receipt)
    saved = bench.seen.save(OwedReceipts())
    assert saved.keys == [("a", -1, True), ("c", 1, False)]  # of "b" there is nothing to keep
    assert all(identity != f"sensor-{crc32(b'21'):08x}" for _, identity, _ in saved.readings)
    bench.restart()
    assert bench.deliver(b"21", "sensor") is not None
    assert bench.deliver(b"21", "n2", key="b") is None


def test_a_counter_that_stood_at_nought_is_kept_over_a_stop() -> None:
    """A number, as any other."""
    bench = _Bench()
    bench.deliver(b"x", "0")
    assert bench.seen.save(OwedReceipts()).keys == [("a", 0, False)]


def test_a_counter_that_begins_anew_while_the_daemon_is_stopped_is_noticed() -> None:
    """The highest number of before the stop is known after it; a number above it is an ordinary one."""
    bench = _Bench()
    bench.deliver(b"x", "2000")
    bench.restart()
    assert bench.deliver(b"y", "2001") == ["2001"]
    bench.restart()
    assert bench.deliver(b"y", "3") == [f"3-{crc32(b'y'):08x}"]
    assert bench.noticed == ["identity_reused"]


@pytest.mark.parametrize(
    ("before", "identity", "is_reused"),
    [
        (["1000"], "0", True),
        (["1000"], "1", False),
        (["2000", "1500"], "900", True),  # what is late does not lower the highest
        (["1000000000002000"], "1000000000001000", False),  # nanoseconds, or a hash: no counter
        (["100000000002000"], "100000000001000", True),
    ],
)
def test_how_far_a_counter_goes_back_shows_whether_it_has_begun_anew(
    before: list[str], identity: str, *, is_reused: bool
) -> None:
    """Less is a reading that is late; and what has sixteen digits does not count readings."""
    bench = _Bench()
    for each in before:
        assert bench.deliver(each.encode(), each) == [each]
    assert bench.deliver(b"x", identity) == [f"{identity}-{crc32(b'x'):08x}" if is_reused else identity]


@pytest.mark.parametrize(("between", "is_repeat"), [(GENERATION - 2, False), (GENERATION - 1, True)])
def test_a_key_is_reliable_again_after_a_generation_without_reuse(between: int, *, is_repeat: bool) -> None:
    """From then on an equal reading is a repeat."""
    bench = _Bench()
    for content in (b"20", b"21"):
        bench.deliver(content, "0", receipt=Receipt(lambda: None, 1, holds=0))
    for step in range(between):
        bench.deliver(b"%d" % step, f"n{step}", receipt=Receipt(lambda: None, 1, holds=0))
    assert (bench.deliver(b"%d" % (between - 1), f"n{between - 1}") is None) == is_repeat


@pytest.mark.parametrize(("between", "is_repeat"), [(GENERATION - 1, False), (GENERATION, True)])
def test_a_key_that_was_unreliable_before_a_stop_is_reliable_after_a_generation(
    between: int, *, is_repeat: bool
) -> None:
    """Counted from the start, since the file does not say how long ago the reuse was."""
    bench = _Bench()
    for content in (b"20", b"21"):
        bench.deliver(content, "0", receipt=Receipt(lambda: None, 1, holds=0))
    bench.restart()
    for step in range(between):
        bench.deliver(b"%d" % step, f"n{step}", receipt=Receipt(lambda: None, 1, holds=0))
    assert (bench.deliver(b"%d" % (between - 1), f"n{between - 1}") is None) == is_repeat


@pytest.mark.parametrize("is_owed", [False, True])
@pytest.mark.parametrize(("between", "going"), [(FAR - 1, None), (FAR, [None])])
def test_after_a_stop_an_equal_reading_so_many_readings_later_is_no_repeat(
    between: int, going: Any, *, is_owed: bool
) -> None:
    """As without the stop, counted from the start: whether the first one is acknowledged or in a saved window."""
    bench, owed, back = _Bench(), OwedReceipts(), OwedReceipts()
    receipt = bench.receipt(1)
    assert bench.deliver(b"same", "n", receipt=receipt) == ["n"]
    if is_owed:
        back.hold(owed.number(receipt))
    else:
        receipt.release()
    saved = bench.seen.save(owed)
    bench.seen, bench.link = bench._make(), bench.link + 1
    bench.seen.restore(saved, back)
    for step in range(between):
        assert bench.deliver(b"%d" % step, f"m{step}") == [f"m{step}"]
    assert bench.deliver(b"same", "n") == going


@pytest.mark.parametrize("is_owed", [False, True])
def test_of_an_identity_that_is_reused_a_stop_keeps_the_last_content(*, is_owed: bool) -> None:
    """An equal reading after the start has no identity of its own, as without the stop."""
    bench, owed, back = _Bench(), OwedReceipts(), OwedReceipts()
    digests = [crc32(content) for content in (b"20", b"21")]
    found = []
    for number, content in enumerate((b"20", b"21", b"20", b"21")):
        receipt = bench.receipt(number)
        found.append(bench.deliver(content, "s", number=number, receipt=receipt))
        if is_owed:
            back.hold(owed.number(receipt))
        else:
            receipt.release()
    assert found == [["s"], [f"s-{digests[1]:08x}"], [f"s-{digests[0]:08x}"], [None]]
    saved = bench.seen.save(owed)
    bench.seen, bench.link = bench._make(), bench.link + 1
    bench.seen.restore(saved, back)
    assert bench.deliver(b"21", "s", number=50) == [None]


def test_a_message_that_is_acknowledged_is_not_listed_as_owed() -> None:
    """Even if it has a number of one that a window held: a stop keeps each message once."""
    bench, owed = _Bench(), OwedReceipts()
    receipts = [bench.receipt(number) for number in (1, 2)]
    for number, receipt in enumerate(receipts, 1):
        bench.deliver(b"%d" % number, number=number, receipt=receipt)
        owed.number(receipt)
    receipts[0].release()
    saved = bench.seen.save(owed)
    assert [number for number, _ in saved.messages] == [1]
    assert [number for number, _, _ in saved.owed_messages] == [2]


def test_a_message_known_by_its_reading_is_acknowledged_when_the_first_one_is_safe() -> None:
    """Its broker was killed: another packet id, and no DUP."""
    bench = _Bench()
    first, again = bench.receipt(1), bench.receipt(2)
    first.hold()
    bench.deliver(b"1", "7", number=1, receipt=first)
    first.release()
    bench.link += 1
    assert bench.deliver(b"1", "7", number=900, receipt=again) is None
    again.release()
    assert bench.acknowledged == []
    first.release()
    assert bench.acknowledged == [1, 2]
    late = bench.receipt(3)
    assert bench.deliver(b"1", "7", number=901, receipt=late) is None
    late.release()
    assert bench.acknowledged == [1, 2, 3]


def test_a_message_in_two_frames_waits_for_itself_only_once() -> None:
    """Both frames have the same receipt; the second holds the same reading again."""
    bench = _Bench()
    receipt = bench.receipt(1)
    decoded = Decoded(np.ones((2, 1), np.float32), [0, 1], [None] * 2, [None] * 2, ["7", "7"])
    came = Deliveries(1, [TOPIC] * 2, [1, 1], [False] * 2, [False] * 2, [receipt, receipt])
    assert bench.seen.admit(decoded, ["a", "a"], came) == [0]
    receipt.release()
    assert bench.acknowledged == [1]


def test_a_repeat_without_receipt_is_skipped() -> None:
    """A message of QoS 0 owes nothing, and is no less a repeat of a reading that does."""
    bench = _Bench()
    first = bench.receipt(1)
    bench.deliver(b"1", "7", number=1, receipt=first)
    decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], ["7"])
    assert not bench.seen.admit_one(decoded, "a", crc32(b"1"), receipt=None, link=2)
    first.release()
    assert bench.acknowledged == [1]


def test_a_message_that_cannot_be_resent_is_not_remembered() -> None:
    """No receipt, or one without a packet id."""
    bench = _Bench()
    for receipt in (None, Receipt(lambda: None)):
        bench.seen.note_message(TOPIC, 1, receipt, 1, with_topic=False)
        assert not bench.seen.is_known_message(TOPIC, 1, receipt, 1, repeated=True)
        assert not bench.seen.is_known_message(TOPIC, 1, receipt, 2, repeated=True)
    assert len(bench.seen._messages) == 0


def test_a_packet_id_that_is_used_for_another_message_is_no_repeat() -> None:
    """DUP, since it was on the wire when the link broke: its content is not that of the earlier one."""
    bench = _Bench()
    for is_safe in (True, False):
        owed = bench.receipt(1)
        assert bench.deliver(b"first", number=1, receipt=owed) == [None]
        if is_safe:
            owed.release()
        bench.link += 1
        assert bench.deliver(b"second %d" % is_safe, number=1, dup=True) == [None]


def test_a_broker_that_numbers_anew_on_each_link_owes_one_message_still() -> None:
    """Over two cut links; a second equal message is a reading."""
    bench = _Bench()
    bench.deliver(b"same", number=1)
    bench.link += 1
    assert bench.deliver(b"other", number=70, dup=True) == [None]
    unnumbered = Receipt(lambda: None)
    assert not bench.seen.is_known_message(TOPIC, crc32(b"same"), unnumbered, bench.link, repeated=True)
    assert bench.deliver(b"same", number=72, dup=True) is None
    bench.link += 1
    assert bench.deliver(b"same", number=91, dup=True) is None
    assert bench.deliver(b"same", number=92, dup=True) == [None]


def test_a_new_number_that_another_owed_message_had_before_hides_neither() -> None:
    """Packet ids begin anew at 1 after 65,535: the older message comes again under the number of the newer one."""
    bench = _Bench()
    older, newer = bench.receipt(1), bench.receipt(2)
    for receipt, number, content in ((older, 65_535, b"older"), (newer, 1, b"newer")):
        receipt.number = number
        assert bench.deliver(content, receipt=receipt) == [None]
    bench.link += 1
    again = [Receipt(lambda: bench.acknowledged.append(3), 1), Receipt(lambda: bench.acknowledged.append(4), 2)]
    assert bench.deliver(b"older", dup=True, receipt=again[0]) is None
    assert bench.deliver(b"newer", dup=True, receipt=again[1]) is None
    for receipt in (*again, older, newer):
        receipt.release()
    assert bench.acknowledged == [1, 3, 2, 4]


def test_two_sources_of_one_topic_know_the_same_message() -> None:
    """They share its receipt, and each skips the repeat."""
    one, other = _Bench(), _Bench()
    first, again = Receipt(lambda: None, 1), Receipt(lambda: None, 71)
    for bench in (one, other):
        assert bench.deliver(b"same", receipt=first) == [None]
        bench.link += 1
    for bench in (one, other):
        assert bench.deliver(b"same", dup=True, receipt=again) is None


def test_the_last_message_of_a_topic_is_the_one_that_was_noted() -> None:
    """By itself, or with its message; looking for a repeat notes nothing."""
    bench = _Bench()
    bench.seen.note_topic(b"t/1", 5)
    assert bench.seen.is_last_of_topic(b"t/1", 5)
    bench.seen.note_message(b"t/2", 6, bench.receipt(1), 1, with_topic=True)
    assert bench.seen.is_last_of_topic(b"t/2", 6)
    bench.seen.note_message(b"t/3", 7, bench.receipt(2), 1, with_topic=False)
    bench.seen.is_known_message(b"t/4", 8, bench.receipt(3), 1, repeated=False)
    assert not bench.seen.is_last_of_topic(b"t/3", 7)
    assert not bench.seen.is_last_of_topic(b"t/4", 8)


def test_a_reading_with_a_time_and_no_identity_can_be_late() -> None:
    """By any amount, unless a tolerance is set; the same moment again, and the first of a key, are not late."""
    bench = _Bench(late="drop")
    assert bench.deliver(b"0", time=-5.0) == [None]
    assert bench.deliver(b"1", time=100.0) == [None]
    assert bench.deliver(b"2", time=100.0) == [None]
    assert bench.deliver(b"3", time=99.9) is None
    assert bench.counters.skipped == {"late": 1}


def test_a_key_in_use_is_remembered_whatever_other_keys_come() -> None:
    """Its newest time and the distrust of its identities; a silent key is forgotten after two generations."""
    bench = _Bench(late="drop")
    receipt = Receipt(lambda: None, 1, holds=0)
    for content in (b"20", b"21"):
        bench.deliver(content, "device", time=1000.0, receipt=receipt)
    bench.deliver(b"x", "0", key="silent", time=1000.0, receipt=receipt)
    for step in range(3 * KEYS):
        bench.deliver(b"x", key=f"k{step}", time=1.0, receipt=receipt)
        if step % (KEYS // 2) == 0:
            assert bench.deliver(b"x", key="a", time=999.0, receipt=receipt) is None
            assert bench.deliver(b"21", "device", time=1000.0, receipt=receipt) is not None
    assert bench.deliver(b"y", "1", key="silent", time=5.0) == ["1"]
    assert len(bench.seen._keys) < 2 * KEYS


def test_a_successor_goes_on_where_its_predecessor_was() -> None:
    """After a reload: a repeat of the very first message is known in the first message of the new source."""
    bench = _Bench()
    owed = bench.receipt(1)
    assert bench.deliver(b"1", "7", number=1, receipt=owed) == ["7"]
    assert bench.deliver(b"same", number=2) == [None]
    assert not bench.seen.is_last_of_topic(b"t/1", 5)
    successor = bench._make()
    successor.take_over(bench.seen)
    bench.seen, bench.link = successor, 2
    assert bench.deliver(b"1", "7", number=900) is None
    assert bench.deliver(b"same", number=2, dup=True) is None
    assert bench.seen.is_last_of_topic(b"t/1", 5)
    assert bench.deliver(b"2", "7") == [f"7-{crc32(b'2'):08x}"]
    begun = bench._make()
    first = _Bench()
    first.deliver(b"1", "7", number=1)
    begun.take_over(first.seen)
    first.seen = begun
    assert first.deliver(b"1", "7", number=901) is None


def test_the_first_of_each_reason_is_logged_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """With the identity, and the key if there is one."""
    caplog.set_level("INFO")
    seen = Seen(Counters(), notice=log_first("press"))
    for key, content in ((None, b"1"), (None, b"2"), ("a", b"1")):
        decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], ["7"])
        seen.admit_one(decoded, key, crc32(content), receipt=None, link=1)
    decoded = Decoded(np.ones((1, 1), np.float32), [0], [None], [None], ["7"])
    assert not seen.admit_one(decoded, "a", crc32(b"1"), receipt=None, link=2)
    found = [(record.levelname, record.__dict__["fields"]) for record in caplog.records]
    assert found == [
        ("WARNING", {"source": "press", "first": "7"}),
        ("INFO", {"source": "press", "first": "7 of a"}),
    ]
