"""Delays the PUBACKs of one connection, ours and the broker's, so that they share a packet with messages.

A separate acknowledgement costs a system call of its sender and a wake-up of its receiver, and a message nearly always
follows. So ours are delayed until the next publish, for at most `ACK_DELAY_S`, and those of the broker stay in the
socket (`WholeSocket.let_wait`) until a message arrives, while few messages are in flight.

A broker without TCP_NODELAY (mosquitto as Debian ships it) sends nothing while an earlier packet is unconfirmed by TCP,
and the kernel confirms an unread packet only after 40 ms, which delays a reading by that time. With `prompt` such a
broker is recognised by several readings that arrive together after this delay; from then on each packet is read when it
arrives and confirmed at once (TCP_QUICKACK). Single readings after this delay may also come from a sensor of that rate:
a few are confirmed at once as a trial, which is made permanent if they are no longer late. For other brokers, and for
slow readings, there is no further cost.

Guarantee: no acknowledgement waits for longer than the `patience` of the connection, and none waits when places in
flight are short: in a rush (more than a quarter of the places taken), with fewer than `LEAST_PATIENT_WINDOW` places,
and after `at_once`. Weak point: over TLS, and without SO_RCVLOWAT in the kernel, each one wakes the process.
"""

from typing import Protocol

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.loop import Loop, Timer

ACK_DELAY_S = 0.2  # the longest delay of an acknowledgement, ours or the broker's
LEAST_PATIENT_WINDOW = 4  # with fewer places in flight each acknowledgement is needed at once
PATIENT_SHARE = 4  # acknowledgements wait while at most a quarter of the places is taken
CALM_S = 1.0  # with few places taken for this time, a rush is over
KERNEL_DELAY_S = (0.036, 0.080)  # of a confirmation: Linux's shortest delayed ACK is 40 ms; more when busy
LATE_READINGS = 3  # that arrived together after this delay, beyond those that did not
ALONE_READINGS = 8  # that arrived singly after this delay, in two of three cases: they start a trial
TRIAL_READINGS = 16  # that are confirmed at once; if half of them are still late, the broker is not the cause
TRIAL_BACK_OFF = 4  # the factor of `ALONE_READINGS` for each further trial
MOST_UNSENT_ACKS = 5  # a quarter of the 20 unacknowledged messages that a broker usually allows
MOST_UNSENT_BYTES = MOST_UNSENT_ACKS * hot_packets.PUBACK_BYTES  # of `ours`: then they are sent without a message


class Path(Protocol):
    """The interface of the connection whose acknowledgements are delayed."""

    @property
    def in_flight(self) -> int:
        """How many of our messages the broker has not acknowledged."""

    @property
    def is_paused(self) -> bool:
        """Whether reading is paused."""

    @property
    def window(self) -> int:
        """How many of our messages may be in flight."""

    def read(self) -> None:
        """Read the bytes in the socket, and handle them."""

    def flush(self) -> None:
        """Write the unsent bytes, together with `ours`."""


class AckCoalescing:
    """The acknowledgements of one connection, while it is up.

    Attributes:
        ours: our encoded PUBACKs that are not yet in the socket's buffer.
        holding: whether those of the broker stay in the socket until a message arrives.
        rush_timer: set during a rush; `wrote` has to be called then, and while `holding`.
        watches_delay: whether `came_after` has to be called; for a single early message only while `is_counting`.
        is_counting: whether readings lately arrived after the kernel's delay, or a trial is in progress.
        late: how many more readings arrived late together than not.
    """

    def __init__(self, path: Path, wrapped: WholeSocket, loop: Loop, patience: float, *, prompt: bool = False) -> None:
        self.watches_delay = prompt
        self.is_counting = False
        self.late = 0
        self._alone = 0  # like `late`, but also counts single readings
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
        self._most_in_flight = 0  # since the last check of the rush

    def allow(self) -> None:
        """Let acknowledgements wait from now on, since the connection is ready."""
        self._allowed = True
        self._hold()

    def at_once(self) -> None:
        """Read the broker's acknowledgements when they arrive from now on: a stop waits for the last of them."""
        self._allowed = False
        if self.holding:
            self._release()
            self._path.read()

    def acknowledge(self, packet_id: int) -> None:
        """Add one of our acknowledgements, to be sent later."""
        self.ours += hot_packets.puback(packet_id)

    def tidy_later(self) -> None:
        """Check after `patience` whether acknowledgements still wait, received or unsent."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._tidy)

    def wrote(self, taken: int, window: int) -> None:
        """Note a write, with `taken` of `window` places taken: in a rush no acknowledgement may wait.

        A broker without TCP_NODELAY sends its next packet when the kernel has confirmed the last one, and the kernel
        takes up to 40 ms for that while nothing is read; with every place taken this would limit the message rate.
        """
        if self.rush_timer is not None:
            self._most_in_flight = max(self._most_in_flight, taken)
        elif taken > window // PATIENT_SHARE:
            self._release()
            self.rush_timer = self._loop.call_later(CALM_S, self._calm_down)
        elif taken:
            self.tidy_later()

    def came_after(self, seconds: float, count: int) -> None:
        """Judge by `count` messages in one read, `seconds` after our last write, whether the broker delays them."""
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
        """Count one reading of a trial."""
        self._trial -= 1
        self._late_in_trial += is_late
        if self._trial:
            return
        if 2 * self._late_in_trial < TRIAL_READINGS:
            self.watches_delay = False
            return
        self._alone, self._enough = 0, self._enough * TRIAL_BACK_OFF  # the sensor itself has this rate
        self._wrapped.confirms = False
        self._hold()

    def _confirm(self) -> None:
        """Read each packet when it arrives from now on, and confirm it at once."""
        self._wrapped.confirms = True
        self._release()

    def end(self) -> None:
        """Discard everything at the end of the connection."""
        for timer in (self._timer, self.rush_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self.rush_timer = None
        self.holding = False
        self.ours.clear()

    def _tidy(self) -> None:
        """Read and send acknowledgements for which no message came in time."""
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
