"""MQTT over WebSockets: paho's framing, with the socket interface that `WholeSocket` uses.

Imported only if a broker's URL is `ws://` or `wss://`. Guarantee: every sent frame is masked, as RFC 6455 (5.3)
requires of a client, and a control frame is never sent inside another one; one `recv` returns everything that has
arrived. Weak points: the names of paho's class that are used here are private (`PRIVATE_NAMES` in `paho_client.py`);
each message from the broker has its own frame, and masking costs time for each sent byte.
"""

import paho.mqtt.client as paho

_BINARY = 0x2  # RFC 6455 section 11.8


class WebSocketStream(paho._WebsocketWrapper):  # noqa: SLF001 - see `PRIVATE_NAMES`
    """Replaces the connected socket below a `WholeSocket`. Its constructor does the handshake, and blocks."""

    def recv(self, length: int) -> bytes:
        """The content of all received frames, up to `length` bytes; empty at the end of the stream.

        Raises:
            BlockingIOError: nothing has arrived.
            OSError: the connection is broken.
        """
        found = bytearray()
        while len(found) < length:
            try:
                part = super().recv(length - len(found))
            except BlockingIOError:
                if self.pending():  # TLS keeps decoded bytes, which the kernel does not report
                    continue
                if not found:
                    raise
                break
            except OSError:
                if not found:
                    raise
                break
            if not part:
                break
            found += part
        return bytes(found)

    def sendall(self, data: bytes | bytearray) -> None:
        """Send everything.

        Raises:
            OSError: the connection is broken, or accepts nothing at present.
        """
        rest = bytes(data)
        while rest:
            rest = rest[self.send(rest) :]

    def setsockopt(self, level: int, name: int, value: int) -> None:
        """Of the socket below."""
        self._socket.setsockopt(level, name, value)

    def settimeout(self, seconds: float) -> None:
        """Of the socket below."""
        self._socket.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        """Of the socket below."""
        self._socket.shutdown(how)

    def _create_frame(self, opcode: int, data: bytearray, do_masking: int = 1) -> bytearray:
        """A frame, always masked; a control frame waits while another one is partly sent."""
        del do_masking
        frame = super()._create_frame(opcode, data)
        if opcode != _BINARY and self._sendbuffer:
            self._sendbuffer.extend(frame)
            return bytearray()
        return frame
