"""A socket that reads all there is in one call, and writes all there is in one call.

paho reads a packet's header byte by byte and writes packet by packet. System calls are what a message costs, so paho
gets this in place of its socket: `recv` is served from what `fill` read, and what `send` takes goes out at `flush`.
`take` hands the packets of the hot path out before paho sees them, and shows paho one whole packet at a time, so that
it never stands in the middle of one. `let_wait` keeps acknowledgements that come alone from waking the process.

The read side is bounded by `RECEIVE_BYTES` a fill and one packet of `most_bytes` (the caller drains it before it fills
again); the write side by what the caller lets be in flight. A longer message is passed over without being kept: its
taker is called once for it, and its bytes are dropped as they come.
"""

import contextlib
import socket
import time
from types import ModuleType
from typing import TYPE_CHECKING

from edge_runtime.mqtt import hot_packets

if TYPE_CHECKING:
    from edge_runtime.mqtt.web_socket import WebSocketStream

RECEIVE_BYTES = 65536
MOST_BYTES = 16 << 20


class WholeSocket:
    """Stands in for a connected `socket.socket` or `ssl.SSLSocket`, non-blocking after `setblocking(False)`.

    Attributes:
        heard: True with everything that comes; the watch for silence resets it.
        most_bytes: the longest packet that is kept.
    """

    def __init__(
        self, wrapped: "socket.socket | WebSocketStream", tls: ModuleType | None = None, *, shows_bytes: bool = True
    ) -> None:
        """Take over `wrapped`.

        Args:
            wrapped: the connection.
            tls: the module `ssl` where there is an `ssl.SSLSocket` in it.
            shows_bytes: the kernel counts the bytes that we are to read, and not frames around them.
        """
        self.heard = False
        self.most_bytes = MOST_BYTES
        self._is_tls = tls is not None
        self._shows_bytes = shows_bytes and not self._is_tls
        self._not_now: tuple[type[OSError], ...] = (BlockingIOError,)
        if tls is not None:
            self._not_now = (BlockingIOError, tls.SSLWantReadError, tls.SSLWantWriteError)
        self._wrapped = wrapped
        self._passing_over = 0  # bytes that are still to be dropped
        self._received = b""
        self._position = 0
        self._visible = 0  # up to here `recv` gives out
        self._partial = bytearray()  # a packet whose end has not come
        self._wanted = 0  # how long it has to be to be looked at again
        self._unsent = bytearray()
        self._ended = False
        self._patience: float | None = None  # of a clean end
        self.confirms = False  # what was read is confirmed to the other side's kernel at once
        self._least = 1  # bytes that make the socket readable while no packet is incomplete
        self._least_now = 1

    def let_wait(self, least: int) -> bool:
        """Call the socket readable only from `least` bytes on, or when a packet lacks its end; False if it cannot.

        Not over TLS or WebSockets: a record or frame may lack less than that, which the kernel cannot see. The end of
        the stream always wakes.
        """
        if not self._shows_bytes:
            return False
        self._least = least
        try:
            self._wake_from(1 if self._partial or self._passing_over else least)
        except OSError:  # not every system can: then all wakes us, as before
            self._least = self._least_now = 1
            return False
        return True

    def _wake_from(self, least: int) -> None:
        if least != self._least_now:
            self._wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._least_now = least

    def fill(self) -> bool:
        """Read once from the network; True when there may be more at once (TLS keeps decoded bytes back).

        Raises:
            OSError: the connection is broken.
        """
        try:
            data = self._wrapped.recv(RECEIVE_BYTES)
        except self._not_now:
            return False
        if not data:
            self._ended = True
            return False
        self.heard = True
        if self.confirms:
            self._wrapped.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        if self._passing_over:
            dropped = min(self._passing_over, len(data))
            self._passing_over -= dropped
            data = data[dropped:]
        if self._partial:
            self._partial += data
            data = b""
            if len(self._partial) >= self._wanted:
                data = bytes(self._partial)
                self._partial.clear()
        self._received = self._received[self._position :] + data if self._position < len(self._received) else data
        self._position, self._visible = 0, len(self._received)
        return self._is_tls and self._wrapped.pending() > 0  # type: ignore[union-attr]

    def take(self, taker: hot_packets.Taker, *, is_v5: bool) -> bool:
        """Hand the packets of the hot path to `taker`; True when `recv` has a whole packet, or the end, for paho.

        Raises:
            ValueError: a packet that is no message is longer than `most_bytes`.
        """
        self._position, end = hot_packets.take(self._received, self._position, taker, is_v5=is_v5)
        if end > len(self._received):
            begun = self._received[self._position :]
            size = end - self._position
            if size > self.most_bytes and len(begun) >= hot_packets.HEAD_BYTES:
                topic, packet_id = hot_packets.head_of_message(begun)
                taker.took_too_long(topic, packet_id, size)
                self._passing_over = size - len(begun)
            else:
                self._partial += begun
                self._wanted = size if size <= self.most_bytes else hot_packets.HEAD_BYTES
            self._received, self._position, end = b"", 0, 0
        if self._least > 1:
            self._wake_from(1 if self._partial or self._passing_over else self._least)
        self._visible = end
        return self.has_received

    @property
    def has_received(self) -> bool:
        """True while `recv` would return something, the end of the stream included."""
        return self._ended or self._position < self._visible

    @property
    def has_unsent(self) -> bool:
        """True while `flush` has something left to write."""
        return bool(self._unsent)

    def recv(self, size: int) -> bytes:
        """Bytes that were read already.

        Raises:
            BlockingIOError: there are none at present.
        """
        position = self._position
        data = self._received[position : min(position + size, self._visible)]
        if data:
            self._position = position + len(data)
            return data
        if self._ended:
            return b""
        raise BlockingIOError

    def send(self, data: bytes | bytearray) -> int:
        """Take all of `data`; it leaves at the next `flush`."""
        self._unsent += data
        return len(data)

    def flush(self) -> bool:
        """Write what was taken; True when all of it is out.

        Raises:
            OSError: the connection is broken.
        """
        try:
            sent = self._wrapped.send(self._unsent)
        except self._not_now:
            return False
        if sent == len(self._unsent):
            self._unsent.clear()
            return True
        del self._unsent[:sent]
        return False

    def fileno(self) -> int:
        """The descriptor, for the event loop."""
        return self._wrapped.fileno()

    def setblocking(self, flag: bool) -> None:
        """As a socket's."""
        self._wrapped.setblocking(flag)

    def set_patience(self, seconds: float) -> None:
        """Let the writes from now on, and the wait for the peer in `close`, take so long at most: a clean end."""
        self._patience = seconds
        self._wrapped.settimeout(seconds)

    def close(self) -> None:
        """As a socket's; what is unsent, such as a goodbye, is given one last chance."""
        if self._unsent:
            with contextlib.suppress(OSError):  # a connection that is broken needs no goodbye
                self._wrapped.sendall(self._unsent)
            self._unsent.clear()
        if self._patience is not None:
            self._part(time.monotonic() + self._patience)
        self._wrapped.close()

    def _part(self, deadline: float) -> None:
        """Send no more, and read until the peer has closed, or until the deadline.

        Input that is unread when a socket is closed makes the kernel reset the connection, and a reset makes the peer's
        kernel throw away what it has not read yet: acknowledgements, the last status, the goodbye.
        """
        with contextlib.suppress(OSError, ValueError):  # broken or closed: nothing to wait for
            self._wrapped.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self._wrapped.settimeout(left)
                if not self._wrapped.recv(RECEIVE_BYTES):
                    return
