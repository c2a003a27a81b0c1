"""When the PUBACKs of one connection are sent, ours and the broker's: in one packet with messages where possible.

An acknowledgement by itself costs a system call here and a wake-up there, and nearly always a message follows. So ours
are delayed until the next publish takes them along, `ACK_DELAY_S` at the longest; and those of the broker stay in the
socket (`WholeSocket.let_wait`) until a message comes, while few messages are in flight.

A broker without TCP_NODELAY (mosquitto as Debian ships it) sends nothing while a packet of its own is unconfirmed, and
the kernel confirms one that is not read only after 40 ms: a reading that comes meanwhile is late by that. With `prompt`
such a broker is recognised by readings that come together just then; from then on each packet is read as it comes and
confirmed at once (TCP_QUICKACK). Readings that come just then one by one may be a sensor of that rate: a few are
confirmed at once as a trial, which is kept where they are no longer late. Other brokers, and slow readings, cost
nothing more.

Guarantee: no acknowledgement waits for longer than the patience that the connection was given, nor at all where places
in flight are short: in a rush (more than a quarter of the places taken), with fewer than `LEAST_PATIENT_WINDOW` places,
and after `at_once`. Weak point: over TLS, and where the kernel knows no SO_RCVLOWAT, each one wakes the process.
"""

from typing import Protocol

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.loop import Loop, Timer

ACK_DELAY_S = 0.2  # how long an acknowledgement, ours or the broker's, is delayed at the most
LEAST_PATIENT_WINDOW = 4  # with fewer places in flight each acknowledgement is needed at once
PATIENT_SHARE = 4  # acknowledgements wait while no more than a quarter of the places is taken
CALM_S = 1.0  # after a rush, so long with few places taken
KERNEL_DELAY_S = (0.036, 0.080)  # of a confirmation: Linux's least delayed ACK is 40 ms; and a busy machine
LATE_READINGS = 3  # that came together after just this time, more often than not
ALONE_READINGS = 8  # that came by themselves after just this time, two in three: reason for a trial
TRIAL_READINGS = 16  # that are confirmed at once; where half of them is late nevertheless, the broker holds none back
TRIAL_BACK_OFF = 4  # times the readings that are reason for the next trial
MOST_UNSENT_ACKS = 5  # a quarter of the 20 that a broker usually lets be unacknowledged
MOST_UNSENT_BYTES = MOST_UNSENT_ACKS * hot_packets.PUBACK_BYTES  # of `ours`: from here on they leave, message or not


class Path(Protocol):
    """What this needs of the connection whose acknowledgements it delays."""

    @property
    def in_flight(self) -> int:
        """How many messages of ours the broker has not acknowledged."""

    @property
    def is_paused(self) -> bool:
        """Nothing is read at present."""

    @property
    def window(self) -> int:
        """How many messages of ours may be in flight."""

    def read(self) -> None:
        """Read what is in the socket, and handle it."""

    def flush(self) -> None:
        """Write what is to be written, with `ours`."""


class AckCoalescing:
    """The acknowledgements of one connection, for as long as it is up.

    Attributes:
        ours: our PUBACKs, encoded, on their way to the socket.
        holding: the broker's stay in the socket until a message comes.
        rush_timer: while there is a rush; `wrote` wants to be called in one, and while `holding`.
        watches_delay: `came_after` wants to be called; for a single message that comes soon only while `is_counting`.
        is_counting: readings came after the kernel's delay of late, or a trial is under way.
        late: by how many more readings the broker seemed to hold messages back than not.
    """

    def __init__(self, path: Path, wrapped: WholeSocket, loop: Loop, patience: float, *, prompt: bool = False) -> None:
        self.watches_delay = prompt
        self.is_counting = False
        self.late = 0
        self._alone = 0  # the same by readings that may have come alone
        self._enough = ALONE_READINGS
        self._trial = 0  # readings until its end
        self._late_in_trial = 0
        self.ours = bytearray()
        self.holding = False
        self._path = path
        self._wrapped = wrapped
        self._loop = loop
        self._patience = patience
        self._allowed = False  # the connection is ready, and `at_once` was not called
        self._timer: Timer | None = None
        self.rush_timer: Timer | None = None
        self._most_in_flight = 0  # of the rush's last look

    def allow(self) -> None:
        """The connection is ready: acknowledgements may wait from now on."""
        self._allowed = True
        self._hold()

    def at_once(self) -> None:
        """From now on the broker's acknowledgements are read as they come: a stop waits for the last of them."""
        self._allowed = False
        if self.holding:
            self._release()
            self._path.read()

    def acknowledge(self, packet_id: int) -> None:
        """One more of ours; `settle_ours` follows."""
        self.ours += hot_packets.puback(packet_id)

    def tidy_later(self) -> None:
        """Look after the patience whether acknowledgements still wait, in or out."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._tidy)

    def wrote(self, taken: int, window: int) -> None:
        """Something was written, and so many places of so many are taken: in a rush no acknowledgement may wait.

        A broker without TCP_NODELAY sends its next packet when the kernel has acknowledged the last one, and the kernel
        takes up to 40 ms for that while nothing is read; with every place taken that would be the speed of the stream.
        """
        if self.rush_timer is not None:
            self._most_in_flight = max(self._most_in_flight, taken)
        elif taken > window // PATIENT_SHARE:
            self._release()
            self.rush_timer = self._loop.call_later(CALM_S, self._calm_down)
        elif taken:
            self.tidy_later()

    def came_after(self, seconds: float, count: int) -> None:
        """So many messages came in one read, so long after our last write: does the broker hold them back?"""
        is_late = KERNEL_DELAY_S[0] <= seconds <= KERNEL_DELAY_S[1]
        if self._trial:
            self._try(is_late=is_late)
            return
        self.late = self.late + 1 if is_late and count > 1 else max(0, self.late - 1)
        self._alone = self._alone + 1 if is_late else max(0, self._alone - 2)
        if self.late >= LATE_READINGS:
            self._confirm()
            self.watches_delay = False
        elif self._alone >= self._enough:
            self._confirm()
            self._trial, self._late_in_trial = TRIAL_READINGS, 0
        self.is_counting = self.late > 0 or self._alone > 0

    def _try(self, *, is_late: bool) -> None:
        """One more reading of a trial."""
        self._trial -= 1
        self._late_in_trial += is_late
        if self._trial:
            return
        if 2 * self._late_in_trial < TRIAL_READINGS:
            self.watches_delay = False
            return
        self._alone, self._enough = 0, self._enough * TRIAL_BACK_OFF  # the readings themselves come at this rate
        self._wrapped.confirms = False
        self._hold()

    def _confirm(self) -> None:
        """From now on each packet is read as it comes, and confirmed at once."""
        self._wrapped.confirms = True
        self._release()

    def end(self) -> None:
        """The connection is gone."""
        for timer in (self._timer, self.rush_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self.rush_timer = None
        self.holding = False
        self.ours.clear()

    def _tidy(self) -> None:
        """No message came that would have taken the acknowledgements along."""
        self._timer = None
        if self.holding and self._path.in_flight and not self._path.is_paused:
            self._path.read()
        if self.ours:
            self._path.flush()
        if self.holding and self._path.in_flight:
            self.tidy_later()

    def _is_rush(self, taken: int) -> bool:
        return taken > self._path.window // PATIENT_SHARE

    def _calm_down(self) -> None:
        self.rush_timer = None
        most, self._most_in_flight = self._most_in_flight, self._path.in_flight
        if self._is_rush(max(most, self._most_in_flight)):
            self.rush_timer = self._loop.call_later(CALM_S, self._calm_down)
            return
        self._hold()
        if self.holding and self._path.in_flight:
            self.tidy_later()

    def _hold(self) -> None:
        may_wait = (
            self._allowed
            and not self._wrapped.confirms
            and self.rush_timer is None
            and self._path.window >= LEAST_PATIENT_WINDOW
        )
        if may_wait and not self.holding:
            self.holding = self._wrapped.let_wait(hot_packets.PUBACK_BYTES + 1)

    def _release(self) -> None:
        if self.holding:
            self.holding = False
            self._wrapped.let_wait(1)
