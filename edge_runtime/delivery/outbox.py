"""The queue of undelivered predictions, which implements the daemon's delivery guarantee.

1. A prediction, once offered, is delivered at least once, in order per model and key. It leaves the outbox only on the
broker's PUBACK. Repeats carry the same `id`.
2. The reading of a prediction is released (and with it the acknowledgement to the reading's broker) only when the
   prediction is acknowledged upstream or committed to disk. With a healthy link nothing is written to disk.
3. A prediction that is neither acknowledged nor committed is at most `commit_interval` old, so that a power cut loses
   at most that much of the data that no source can send again. With `commit_interval = 0` a prediction is committed
   before it is sent.
4. When the disk's bound is reached, the oldest prediction of the lowest priority is dropped first, and counted. While
   the disk fails, or without a disk, the same holds for memory; but a prediction whose reading is not yet released is
   never dropped from memory: its broker stops sending instead.

5. A prediction that can never be sent (its topic is invalid, its packet too large for this broker, or sending it always
ends the link) is set aside, on disk if there is one (`quarantine.py`), counted, and delays no other stream.

Weak points: a message that a broker acknowledges and then loses is lost. A prediction that the broker refuses is
retried after the next ones of its stream; without a disk its reading is acknowledged then, so that later readings are
not delayed, and a crash can lose it. When a disk with rows of a stream has failed for a minute, new predictions of the
stream no longer wait for it: if it returns, its rows are delivered late (`order_given_up`).

How it works. An entry is *waiting* (in memory), *in flight* (sent, not acknowledged), or *stored* (a row on disk, out
of memory), or in flight and stored. Entries older than `commit_interval` are committed in one transaction; without a
link, younger entries are included, so that there is one transaction an interval. Stored rows are sent oldest first when
the link is up again. An entry of a stream with unsent stored rows waits behind them, by becoming a row itself; an entry
of any other stream is sent at once, and a quarter of the places in flight is reserved for these.

Longer than 500 lines, and one class of more than 400, on purpose: the state of an entry (in memory, in flight, on disk)
is changed by sending, committing and losing the link together, and the guarantee depends on that one state. Separate
modules hold the file (`outbox_file.py`), its rows, its thread, and payloads.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.delivery.payloads import mark_delayed
from edge_runtime.delivery.quarantine import Quarantine
from edge_runtime.delivery.rows import Committed, NewRow, Opened, OutboxFileError, OutboxRow, SetAside, Trimmed
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop, Timer

PRIORITY_ALARM = 0
PRIORITY_ROUTINE = 1
PRIORITY_TELEMETRY = 2

FETCH_ROWS = 64
REOPEN_FIRST_S = 1.0
REOPEN_MOST_S = 30.0
ORDER_PATIENCE_S = 60.0  # how long new predictions wait for rows on a disk that fails
REFUSED_FIRST_S = 5.0
REFUSED_MOST_S = 300.0
FRUITLESS_LOSSES = 3  # of the link, without an acknowledgement in between: then one entry is sent at a time
MOST_BREAKS = 3  # of the link by one entry alone, while others get through; without others to compare with:
MOST_BREAKS_ALONE = 10
MEMORY_OVERHEAD_BYTES = 400  # an entry's objects beside its payload, measured with sys.getsizeof


class Link(Protocol):
    """The interface of a connection that the outbox uses."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection and no loss is known."""

    @property
    def window(self) -> int:
        """How many messages may be unacknowledged."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Callable[[bool], None] | None
    ) -> bool:
        """Send; False if impossible now. Calls `outcome(True)` on the acknowledgement, `(False)` on a refusal."""


class Entry(msgspec.Struct, eq=False):
    """One prediction in the outbox."""

    stream: str
    topic: str
    payload: bytes
    priority: int
    receipt: Receipt | None
    order: int
    made: float
    since: float = 0.0
    row: int | None = None
    in_flight: bool = False
    committing: bool = False
    done: bool = False
    delayed: bool = False
    aside: str = ""  # why it goes to the quarantine after its commit
    breaks: int = 0  # how often the link ended while this one alone was in flight
    size: int = 0  # bytes of memory; counted while it is in memory only


class Outbox:
    """The queue between the models and the upstream link.

    Args:
        loop: the event loop; everything here runs in its thread.
        counters: `published`, `stored`, dropped and errors by reason.
        store: the disk, or None for memory only.
        commit_interval: seconds; see the guarantee.
        max_memory_bytes: the bound of what waits in memory.
        qos: 1, or 0 if the user accepts losses: then sent counts as delivered.
        unsendable: why a message to a topic with a payload of a size can never be sent over the present link; None
            where it can.
        wall: the wall clock, for the age of rows.
    """

    def __init__(
        self,
        loop: Loop,
        counters: Counters,
        *,
        store: OutboxThread | None,
        commit_interval: float,
        max_memory_bytes: int,
        qos: int = 1,
        unsendable: Callable[[str, int], str | None] = lambda _topic, _size: None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._loop = loop
        self._counters = counters
        self._store = store
        self._commit_interval = commit_interval
        self._max_memory = max_memory_bytes
        self._qos = qos
        self._wall = wall
        self._unsendable = unsendable
        self.quarantine = Quarantine(wall)
        self._setting_aside = 0  # being moved to the quarantine
        self._aside_later: list[tuple[Entry, str]] = []  # rows that go there when the disk works again, and why
        self._held = 0  # bytes of entries in memory with an unreleased reading
        self._told_full = False
        self.on_full: list[Callable[[bool], None]] = []
        self._acknowledged = 0
        self._acknowledged_at_link = 0  # when the link came up
        self._fruitless = 0
        self._row_breaks: dict[int, tuple[int, int]] = {}  # by row: breaks, and acknowledgements until the first
        self._link: Link | None = None
        self._order = 0
        self._waiting: deque[Entry] = deque()
        self._in_flight: dict[int, Entry] = {}  # by order
        self._memory = 0
        self._store_open = self._was_open = False
        self._opening = store is not None  # while True, the streams with rows to send first are unknown
        self._committing = False
        self._fetching = False
        self._fetched: deque[OutboxRow] = deque()
        self._sent_rows: set[int] = set()  # rows in flight or delivered, not yet deleted
        self._cursor = 0  # rows up to this id were fetched over this connection
        self._backlog: Counter[str] = Counter()  # stored rows by stream that are not in flight
        self._stored_rows = 0
        self._delivered_rows: list[int] = []
        self._timer: Timer | None = None
        self._reopen_delay = REOPEN_FIRST_S
        self._reopen_due = False
        self._stopping = False
        self._refusals: Counter[str] = Counter()  # by stream, since its last acknowledgement
        self._paused: set[str] = set()  # streams that the broker refused, until their retry
        self._failing_since: float | None = None
        self._pump_due = False
        self.state = "memory only" if store is None else "opening"
        self.on_state: Callable[[str], None] | None = None
        if store is not None:
            store.open(self._opened)

    # --- what others see ------------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """The number of predictions in memory and on disk."""
        in_memory = len(self._waiting) + sum(1 for entry in self._in_flight.values() if entry.row is None)
        return in_memory + max(0, self._stored_rows - len(self._delivered_rows))

    @property
    def memory_bytes(self) -> int:
        """Bytes of predictions in memory, as counted against the bound."""
        return self._memory

    @property
    def stored_rows(self) -> int:
        """Rows on disk."""
        return self._stored_rows

    @property
    def is_full(self) -> bool:
        """True when sources that can wait should: at half of the bound, which leaves room for what is in progress."""
        return self._memory >= self._max_memory // 2

    def attach(self, link: Link) -> None:
        """Set the link to send over; call `link_changed` whenever it comes up or goes down."""
        self._link = link

    def offer(self, stream: str, topic: str, payload: bytes, *, priority: int, receipt: Receipt | None) -> None:
        """Take over a prediction, and send it if that is possible now.

        Args:
            stream: the model and key; order is kept within it.
            topic: where it goes.
            payload: a JSON object.
            priority: `PRIORITY_ALARM` and so on; the lowest is dropped first.
            receipt: held by the caller for the outbox; released when the prediction is safe.
        """
        self._order += 1
        entry = Entry(stream, topic, payload, priority, receipt, self._order, self._wall(), self._loop.time())
        size = entry.size = len(payload) + len(topic) + MEMORY_OVERHEAD_BYTES
        self._memory += size
        if receipt is not None:
            self._held += size
            if self._held >= self._max_memory // 2:
                self._check_room()
        link = self._link
        before_sending = self._commit_interval == 0 and self._store_open
        free = (
            link is not None
            and link.connected
            and not (before_sending or self._opening or self._waiting)
            and not (self._backlog and self._backlog.get(stream))
            and (
                not self._in_flight
                or len(self._in_flight) < (self._places(link) if self._row_breaks or self._fruitless else link.window)
            )
            and self._send(entry)
        )
        if not free:
            entry.delayed = not self._is_linked()
            self._waiting.append(entry)
            if self._memory > self._max_memory // 2:
                self._commit_due(everything=True)  # do not drop from memory what fits on the disk
            if self._memory > self._max_memory:
                self._make_room()
            self._pump_soon()
        if before_sending:
            self._loop.call_soon(self._commit_due)
        else:
            self._arm_timer()

    def link_changed(self) -> None:
        """The link came up or went down."""
        link = self._link
        if link is not None and link.connected:
            self._acknowledged_at_link = self._acknowledged
            self._pump()
            return
        for entry in self._waiting:  # for a place in flight until now
            entry.delayed = True
        if self._in_flight:
            self._take_back()

    def drain(self) -> None:
        """Commit everything now (a clean stop). `is_safe` is True when that is done."""
        self._stopping = True
        if self._store is not None and not self._store_open and not self._opening:
            self._store.open(self._opened)  # one more attempt after a failure of the disk
        self._commit_due(everything=True)

    @property
    def is_delivered(self) -> bool:
        """Whether waiting for acknowledgements cannot deliver anything more from memory."""
        return not self._waiting and all(entry.row is not None for entry in self._in_flight.values())

    @property
    def is_safe(self) -> bool:
        """Whether a kill now would lose nothing."""
        if self._committing or self._setting_aside:
            return False
        if not self._store_open:
            return not self._waiting and not self._in_flight
        return not self._delivered_rows and all(
            entry.row is not None for entry in (*self._waiting, *self._in_flight.values())
        )

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self, entry: Entry) -> bool:
        link = self._link
        assert link is not None
        payload = mark_delayed(entry.payload) if entry.delayed else entry.payload
        if not link.publish(entry.topic, payload, qos=self._qos, outcome=partial(self._settled, entry)):
            return False
        entry.in_flight = True
        self._in_flight[entry.order] = entry
        return True

    def _settled(self, entry: Entry, accepted: bool) -> None:
        """Handle the acknowledgement or refusal of an entry in flight on the present connection."""
        self._in_flight.pop(entry.order, None)
        entry.in_flight = False
        if not accepted:
            self._refused(entry)
            return
        entry.done = True
        self._acknowledged += 1
        self._fruitless = 0
        if self._refusals:
            del self._refusals[entry.stream]
        self._counters.counts["published"] += 1
        if entry.row is not None:
            self._delivered_rows.append(entry.row)
            self._arm_timer()
        else:
            self._memory -= entry.size
        self._forget_breaks(entry)
        self._release(entry)
        self._pump_soon()

    def _forget_breaks(self, entry: Entry) -> None:
        """Drop the counts of link breaks of an entry that leaves the outbox."""
        if entry.breaks:
            self._row_breaks.pop(entry.row or -entry.order, None)

    def _release(self, entry: Entry) -> None:
        """Release the reading of an entry: the prediction is safe, or the outbox alone holds it from now on."""
        receipt = entry.receipt
        if receipt is not None:
            entry.receipt = None
            self._held -= entry.size
            receipt.release()
            if self._told_full:
                self._check_room()

    def _check_room(self) -> None:
        """Make sources that can wait do so while entries that must not be dropped take half of the memory."""
        is_full = self._held >= self._max_memory // (4 if self._told_full else 2)
        if is_full != self._told_full:
            self._told_full = is_full
            for listener in self.on_full:
                listener(self._told_full)

    def _places(self, link: Link) -> int:
        """How many entries may be in flight: one if the link keeps ending, to find the entry that ends it."""
        if self._fruitless < FRUITLESS_LOSSES and not self._row_breaks:
            return link.window  # none is suspected
        alone = self._fruitless >= FRUITLESS_LOSSES or any(entry.breaks for entry in self._in_flight.values())
        return 1 if alone else link.window

    def _pump_soon(self) -> None:
        """Pump once for all events of a wake-up."""
        if (self._waiting or self._backlog) and not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _refused(self, entry: Entry) -> None:
        """Keep an entry that the broker refused (its ACL, its quota), and retry its stream a little later.

        A new connection does not end the pause: some brokers (mosquitto 2.0 for one) close the connection behind a
        refusal, and all other streams would be stuck in a loop of refusals and reconnections.
        """
        why = self._unsendable(entry.topic, len(entry.payload))
        if why is not None:
            self._set_aside(entry, why)
            return
        self._counters.errors["refused_by_broker"] += 1
        if entry.row is None:
            entry.delayed = True
            self._waiting.append(entry)
            self._sort_waiting()
            self._arm_timer()
        else:
            self._backlog[entry.stream] += 1
            self._sent_rows.discard(entry.row)  # and fetched again when the pause ends
        self._pause(entry.stream)
        self._pump_soon()

    def _pause(self, stream: str) -> None:
        """Send nothing more of a stream for a while; longer each time, until it is acknowledged again."""
        if stream not in self._paused:
            self._paused.add(stream)
            pause = min(REFUSED_MOST_S, REFUSED_FIRST_S * 2.0 ** min(self._refusals[stream], 16))
            self._refusals[stream] += 1
            self._loop.call_later(pause, lambda: self._resume(stream))

    def _set_aside(self, entry: Entry, why: str) -> None:
        """Move an entry that can never be sent into the quarantine; its reading is released with the commit."""
        if entry.committing:  # it is becoming a row, which has to be moved as well
            entry.aside = why
            return
        if entry.row is not None and not self._store_open:  # the disk with its row is not available
            self._aside_later.append((entry, why))
            self._pump_soon()
            return
        if self._store is None or not self._store_open:
            self._is_aside(entry, why)
            return
        self._setting_aside += 1
        row = SetAside(entry.stream, entry.made, entry.topic, entry.payload, why)
        taken = [] if entry.row is None else [entry.row]
        self._store.set_aside([row], taken, lambda found: self._was_set_aside(entry, why, found))

    def _was_set_aside(self, entry: Entry, why: str, found: "int | OutboxFileError") -> None:
        self._setting_aside -= 1
        if isinstance(found, OutboxFileError):
            if entry.row is None:
                self._waiting.append(entry)
                self._sort_waiting()
            else:
                self._sent_rows.discard(entry.row)
                self._backlog[entry.stream] += 1
            self._store_failed(found)
            return
        self._stored_rows = found
        self._is_aside(entry, why)

    def _is_aside(self, entry: Entry, why: str) -> None:
        """Record that an entry has left the queue."""
        self.quarantine.note(entry.stream, entry.topic, len(entry.payload), why)
        self._counters.dropped["unsendable"] += 1
        if entry.row is None:
            self._memory -= entry.size
        else:
            self._sent_rows.discard(entry.row)
        self._forget_breaks(entry)
        self._release(entry)
        self._pump_soon()

    def _resume(self, stream: str) -> None:
        self._paused.discard(stream)
        self._read_anew()
        self._pump()

    def _read_anew(self) -> None:
        """Fetch all rows again, from the oldest on."""
        self._cursor = 0
        self._fetched.clear()

    def _pump(self) -> None:
        """Fill the places in flight: live entries of streams without a backlog first, then stored rows."""
        self._pump_due = False
        link = self._link
        if link is None or not link.connected or self._opening or self._stopping:
            return
        if self._waiting:
            self._send_waiting(link)
        if all(stream in self._paused for stream in self._backlog):
            return
        reserve = link.window // 4
        while self._fetched and len(self._in_flight) < min(max(1, link.window - reserve), self._places(link)):
            if not self._send_row(self._fetched.popleft()):
                return
        if len(self._fetched) < FETCH_ROWS // 2 and self._store_open and not self._fetching and self._store is not None:
            self._fetching = True
            cursor = self._cursor
            self._store.fetch(cursor, FETCH_ROWS, lambda found: self._rows_fetched(found, cursor))

    def _send_waiting(self, link: Link) -> None:
        kept: list[Entry] = []
        blocked: set[str] = set()
        while self._waiting and len(self._in_flight) < self._places(link):
            entry = self._waiting.popleft()
            must_wait = (
                entry.committing
                or entry.stream in blocked
                or entry.stream in self._paused
                or self._backlog[entry.stream] > 0
                or (self._commit_interval == 0 and self._store_open)
                or (entry.breaks > 0 and bool(self._in_flight))
            )
            if self._store is None and entry.stream in self._paused:
                self._release(entry)  # otherwise later readings of every stream would wait for it
            if must_wait or not self._send(entry):
                kept.append(entry)
                blocked.add(entry.stream)
        self._waiting.extendleft(reversed(kept))

    def _send_row(self, row: OutboxRow) -> bool:
        if row.id in self._sent_rows or row.stream in self._paused:
            return True
        self._order += 1
        entry = Entry(row.stream, row.topic, row.payload, row.priority, None, self._order, row.made)
        entry.row, entry.delayed = row.id, True
        entry.size = len(entry.payload) + len(entry.topic) + MEMORY_OVERHEAD_BYTES
        entry.breaks = self._row_breaks.get(row.id, (0, 0))[0]
        if (entry.breaks and self._in_flight) or not self._send(entry):
            self._fetched.appendleft(row)
            return False
        self._sent_rows.add(row.id)
        self._lower_backlog(row.stream)
        return True

    def _lower_backlog(self, stream: str, count: int = 1) -> None:
        left = self._backlog[stream] - count
        if left > 0:
            self._backlog[stream] = left
        else:
            del self._backlog[stream]

    def _rows_fetched(self, found: list[OutboxRow] | OutboxFileError, cursor: int) -> None:
        self._fetching = False
        if isinstance(found, OutboxFileError):
            self._store_failed(found)
            return
        if cursor != self._cursor:  # the link was lost meanwhile: the fetched rows are stale
            self._pump()
            return
        if found:
            self._cursor = found[-1].id
            for row in found:
                if not row.is_sound:
                    self._drop_damaged(row)
                elif row.id not in self._sent_rows:
                    self._fetched.append(row)
            self._pump()
        elif not self._fetched:
            # every row was fetched; a different count includes rows that are gone
            self._backlog = Counter({s: count for s, count in self._backlog.items() if s in self._paused})
            self._pump()

    def _drop_damaged(self, row: OutboxRow) -> None:
        """Drop a row whose bytes the disk has changed, since they are not the prediction that was written."""
        if row.id not in self._sent_rows:
            self._sent_rows.add(row.id)
            self._delivered_rows.append(row.id)
            self._lower_backlog(row.stream)
            self._counters.dropped["row_damaged"] += 1
            self._arm_timer()

    def _take_back(self) -> None:
        """Put the entries in flight back into the queue in their old order, after the link was lost."""
        if self._acknowledged == self._acknowledged_at_link:
            self._fruitless += 1
        self._blame_for_the_loss()
        for entry in sorted(self._in_flight.values(), key=lambda entry: entry.order):
            entry.in_flight = False
            if entry.row is None:
                entry.delayed = True
                self._waiting.append(entry)
            else:
                self._sent_rows.discard(entry.row)
                self._backlog[entry.stream] += 1
        self._in_flight.clear()
        self._sort_waiting()
        self._read_anew()
        self._arm_timer()

    def _blame_for_the_loss(self) -> None:
        """Blame the only entry in flight when the link ended, if that has happened before.

        A broker that closes the connection because of a message (its size, its topic) gives no other sign, and would
        get the same message again after each reconnection. So its stream pauses while others continue; if it alone
        keeps ending the link, it is set aside.
        """
        if len(self._in_flight) != 1:
            return
        entry = next(iter(self._in_flight.values()))
        if not entry.breaks and self._fruitless < FRUITLESS_LOSSES:
            return
        entry.breaks += 1
        _, at_first = self._row_breaks.get(entry.row or -entry.order, (0, self._acknowledged))
        self._row_breaks[entry.row or -entry.order] = entry.breaks, at_first
        most = MOST_BREAKS if self._acknowledged > at_first else MOST_BREAKS_ALONE
        if entry.breaks < most:
            self._fruitless = 0
            self._pause(entry.stream)
            return
        self._in_flight.clear()
        self._set_aside(entry, f"the broker ended the connection {entry.breaks} times when it was sent alone")

    def _sort_waiting(self) -> None:
        self._waiting = deque(sorted(self._waiting, key=lambda entry: entry.order))

    # --- committing -----------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        """Schedule the next commit of entries in memory; without a disk there is none."""
        if not self._store_open:
            return
        if self._stopping:
            self._loop.call_soon(lambda: self._commit_due(everything=True))
        elif self._timer is None:
            self._timer = self._loop.call_later(max(self._commit_interval, 0.01), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if not self._store_open:
            return
        self._commit_due()
        oldest = self._oldest()
        if oldest is not None or self._delivered_rows:
            since = self._loop.time() if oldest is None else oldest
            due = since + self._commit_interval - self._loop.time()
            self._timer = self._loop.call_later(max(due, 0.01, self._commit_interval / 4), self._on_timer)

    def _oldest(self) -> float | None:
        candidates = [entry.since for entry in self._uncommitted()]
        return min(candidates) if candidates else None

    def _uncommitted(self) -> Iterable[Entry]:
        for entry in self._in_flight.values():
            if entry.row is None and not entry.committing:
                yield entry
        for entry in self._waiting:
            if not entry.committing:
                yield entry

    def _commit_due(self, *, everything: bool = False) -> None:
        """Commit entries older than the interval, and delete delivered rows, in one transaction."""
        if self._store is None or not self._store_open or self._committing:
            return
        now = self._loop.time()
        due = list(self._uncommitted())
        horizon = now - self._commit_interval
        if not everything and (self._is_linked() or not any(entry.since <= horizon for entry in due)):
            # without a link, once one is due all are committed: one transaction an interval
            due = [entry for entry in due if entry.since <= horizon]
        if not due and not self._delivered_rows:
            return
        due.sort(key=lambda entry: entry.order)
        for entry in due:
            entry.committing = True
        delivered, self._delivered_rows = self._delivered_rows, []
        # The time of its making by the present wall clock, which may have been set since.
        set_by = self._wall() - now
        rows = [
            NewRow(
                entry.stream,
                entry.priority,
                entry.since + set_by if entry.since else entry.made,
                entry.topic,
                entry.payload,
            )
            for entry in due
        ]
        self._committing = True
        self._store.commit(rows, delivered, lambda found: self._committed(due, delivered, found))

    def _is_linked(self) -> bool:
        return self._link is not None and self._link.connected

    def _committed(self, due: list[Entry], delivered: list[int], found: Committed | OutboxFileError) -> None:
        self._committing = False
        for entry in due:
            entry.committing = False
            if entry.aside and isinstance(found, OutboxFileError):
                self._set_aside(entry, entry.aside)
        if isinstance(found, OutboxFileError):
            self._delivered_rows = delivered + self._delivered_rows
            self._store_failed(found)
            return
        self._sent_rows.difference_update(delivered)
        self._counters.counts["stored"] += len(found.ids)
        for entry, row_id in zip(due, found.ids, strict=True):
            self._now_stored(entry, row_id)
        self._waiting = deque(entry for entry in self._waiting if entry.row is None)
        self._stored_rows = found.rows
        self._forget_trimmed(found.trimmed)
        self._set_state("ok")
        if self._stopping:
            self._commit_due(everything=True)
        elif self._delivered_rows or self._commit_interval == 0:
            self._arm_timer()
        self._pump()

    def _now_stored(self, entry: Entry, row_id: int) -> None:
        """Note that an entry is on disk: uncount its memory, release its reading, and send it if it is its turn."""
        entry.row = row_id
        self._memory -= entry.size
        self._release(entry)
        if entry.breaks and not entry.done:
            self._row_breaks[row_id] = self._row_breaks.pop(-entry.order, (entry.breaks, self._acknowledged))
        if entry.aside:
            self._sent_rows.add(row_id)
            self._set_aside(entry, entry.aside)
        elif entry.done:
            self._memory += entry.size  # its acknowledgement had already subtracted it
            self._delivered_rows.append(row_id)
            self._sent_rows.add(row_id)  # until its deletion, so that a fetch does not send it again
        elif entry.in_flight or (self._may_send(entry) and self._send(entry)):
            self._sent_rows.add(row_id)
        else:
            self._backlog[entry.stream] += 1

    def _may_send(self, entry: Entry) -> bool:
        link = self._link
        return (
            link is not None
            and link.connected
            and not self._stopping
            and not self._backlog[entry.stream]
            and len(self._in_flight) < self._places(link)
            and not (entry.breaks and self._in_flight)
            and entry.stream not in self._paused
        )

    def _forget_trimmed(self, trimmed: Trimmed) -> None:
        for reason, count in trimmed.by_reason.items():
            self._counters.dropped[reason] += count
        gone = set(trimmed.ids)
        if gone:
            in_flight = {entry.row for entry in self._in_flight.values()}
            self._fetched = deque(row for row in self._fetched if row.id not in gone)
            for stream, count in trimmed.by_stream.items():
                sent = sum(1 for entry in self._in_flight.values() if entry.stream == stream and entry.row in gone)
                self._lower_backlog(stream, count - sent)
            self._sent_rows -= gone - in_flight
            for row_id in gone:
                self._row_breaks.pop(row_id, None)

    # --- the disk -------------------------------------------------------------------------------------------------

    def _opened(self, found: Opened | OutboxFileError) -> None:
        self._opening = False
        if isinstance(found, OutboxFileError):
            self._store_failed(found)
            return
        self._store_open = self._was_open = True
        self.quarantine.count = max(self.quarantine.count, found.quarantined)
        self._failing_since = None
        self._reopen_delay = REOPEN_FIRST_S
        if found.damaged_file is not None:
            self._counters.errors["outbox_damaged"] += 1
            self._counters.counts["outbox_salvaged"] += found.salvaged
            if found.lost:
                self._counters.dropped["outbox_damaged"] += found.lost
            self._forget_row_numbers()
        self._stored_rows = found.rows
        later, self._aside_later = self._aside_later, []
        handed_out = Counter(entry.stream for entry in self._in_flight.values() if entry.row is not None)
        handed_out.update(entry.stream for entry, _ in later)
        self._backlog = Counter(found.streams) - handed_out
        self._set_state("ok" if found.damaged_file is None else f"damaged file set aside as {found.damaged_file}")
        for entry, why in later:
            self._set_aside(entry, why)
        if self._delivered_rows or self._waiting or self._in_flight:
            self._arm_timer()
        self._read_anew()
        self._pump()

    def _forget_row_numbers(self) -> None:
        """Forget row numbers after the file was replaced: the new file uses them for other rows."""
        self._row_breaks.clear()
        self._sent_rows.clear()
        self._aside_later.clear()
        self._delivered_rows.clear()
        for entry in self._in_flight.values():
            if entry.row is not None:
                entry.row = None
                self._memory += entry.size

    def _store_failed(self, error: OutboxFileError) -> None:
        """Continue in memory, and reopen the file after a while."""
        self._store_open = False
        self._counters.errors["outbox_disk"] += 1
        self._set_state(str(error))
        self._fetched.clear()
        now = self._loop.time()
        if self._failing_since is None:
            self._failing_since = now
            if not self._was_open:  # the streams with rows that should go first are unknown
                self._counters.errors["order_given_up"] += 1
        if self._backlog and now - self._failing_since >= ORDER_PATIENCE_S:
            self._backlog.clear()
            self._counters.errors["order_given_up"] += 1
        if not self._stopping and not self._reopen_due:
            self._reopen_due = True  # once, however many calls failed by the same fault
            self._loop.call_later(self._reopen_delay, self._reopen)
            self._reopen_delay = min(REOPEN_MOST_S, self._reopen_delay * 2)
        self._pump_soon()

    def _reopen(self) -> None:
        self._reopen_due = False
        if self._store is not None and not self._stopping and not self._store_open:
            self._store.open(self._opened)

    def _set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            if self.on_state is not None:
                self.on_state(state)

    def _make_room(self) -> None:
        """Drop the oldest entries of the lowest priority, without an unreleased reading, when memory is full."""
        candidates = [entry for entry in self._waiting if entry.receipt is None and not entry.committing]
        candidates.sort(key=lambda entry: (-entry.priority, entry.order))
        dropped: set[int] = set()
        for entry in candidates:
            if self._memory <= 0.9 * self._max_memory:  # frees a tenth at once: fewer sorts in a flood
                break
            self._memory -= entry.size
            dropped.add(entry.order)
            self._forget_breaks(entry)
            self._counters.dropped["memory_full"] += 1
        if dropped:
            self._waiting = deque(entry for entry in self._waiting if entry.order not in dropped)
