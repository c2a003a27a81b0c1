"""A socket that reads everything available in one call, and writes everything in one call.

paho reads a packet's header byte by byte and writes packet by packet. System calls dominate the cost of a message, so
paho gets this instead of its socket: `recv` returns bytes read by `fill`, and bytes given to `send` are written by
`flush`. `take` removes the packets of the hot path before paho, and gives paho one whole packet at a time, so that paho
never stops inside one. `let_wait` keeps single acknowledgements from waking the process.

The read side is bounded by `RECEIVE_BYTES` a fill and one packet of `most_bytes` (the caller drains it before it fills
again); the write side by the caller's limit of messages in flight. A longer message is skipped: its taker is called
once for it, and its bytes are dropped on arrival.
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
    """Replaces a connected `socket.socket` or `ssl.SSLSocket`, non-blocking after `setblocking(False)`.

    Attributes:
        heard: set when anything arrives; the watch for silence resets it.
        most_bytes: the longest packet that is not skipped.
    """

    def __init__(
        self, wrapped: "socket.socket | WebSocketStream", tls: ModuleType | None = None, *, shows_bytes: bool = True
    ) -> None:
        """Take over `wrapped`.

        Args:
            wrapped: the connection.
            tls: the module `ssl` if `wrapped` contains an `ssl.SSLSocket`.
            shows_bytes: whether the kernel counts exactly the bytes to read, without frames around them.
        """
        self.heard = False
        self.most_bytes = MOST_BYTES
        self._is_tls = tls is not None
        self._shows_bytes = shows_bytes and not self._is_tls
        self._not_now: tuple[type[OSError], ...] = (BlockingIOError,)
        if tls is not None:
            self._not_now = (BlockingIOError, tls.SSLWantReadError, tls.SSLWantWriteError)
        self._wrapped = wrapped
        self._passing_over = 0  # bytes still to be dropped
        self._received = b""
        self._position = 0
        self._visible = 0  # the end of the bytes for `recv`
        self._partial = bytearray()  # an incomplete packet
        self._wanted = 0  # the length at which it is parsed again
        self._unsent = bytearray()
        self._ended = False
        self._patience: float | None = None  # the time limit of a clean end
        self.confirms = False  # whether reads are confirmed to the peer's kernel at once
        self._least = 1  # bytes that make the socket readable while no packet is incomplete
        self._least_now = 1

    def let_wait(self, least: int) -> bool:
        """Make the socket readable only from `least` bytes on, or while a packet is incomplete; False if unsupported.

        Not over TLS or WebSockets: an incomplete record or frame may need fewer bytes, which the kernel cannot know.
            The end of the stream always wakes.
        """
        if not self._shows_bytes:
            return False
        self._least = least
        try:
            self._wake_from(1 if self._partial or self._passing_over else least)
        except OSError:  # unsupported by this system: then every byte wakes the process
            self._least = self._least_now = 1
            return False
        return True

    def _wake_from(self, least: int) -> None:
        if least != self._least_now:
            self._wrapped.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least)
            self._least_now = least

    def fill(self) -> bool:
        """Read once from the network; True when there may be more at once (TLS buffers decoded bytes).

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
        """Give the packets of the hot path to `taker`; True if `recv` has a whole packet, or the end, for paho.

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
        """Bytes that were already read.

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
        """Take all of `data`; the next `flush` writes it."""
        self._unsent += data
        return len(data)

    def flush(self) -> bool:
        """Write the taken bytes; True when all are written.

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
        """Limit the further writes, and the wait for the peer in `close`, to `seconds`, for a clean end."""
        self._patience = seconds
        self._wrapped.settimeout(seconds)

    def close(self) -> None:
        """As a socket's; unsent bytes, such as a DISCONNECT, get one last attempt."""
        if self._unsent:
            with contextlib.suppress(OSError):  # a broken connection needs no DISCONNECT
                self._wrapped.sendall(self._unsent)
            self._unsent.clear()
        if self._patience is not None:
            self._part(time.monotonic() + self._patience)
        self._wrapped.close()

    def _part(self, deadline: float) -> None:
        """Shut down the writing side, and read until the peer has closed, or until the deadline.

        Unread input when a socket is closed makes the kernel reset the connection, and after a reset the peer's kernel
        discards the bytes that it has not read: acknowledgements, the last status, the DISCONNECT.
        """
        with contextlib.suppress(OSError, ValueError):  # broken or closed: nothing to wait for
            self._wrapped.shutdown(socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self._wrapped.settimeout(left)
                if not self._wrapped.recv(RECEIVE_BYTES):
                    return
