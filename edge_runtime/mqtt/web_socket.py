"""MQTT over WebSockets: paho's framing, with what `WholeSocket` asks of a socket.

Imported only where a broker's URL is `ws://` or `wss://`. Guarantee: every frame that we send is masked, as RFC 6455
(5.3) asks of a client, and a control frame never stands in the middle of another one; one `recv` gives everything that
has come. Weak points: the names of paho's class that are used here are private (`PRIVATE_NAMES` in `paho_client.py`);
a message costs a frame of its own at the broker's side, and each byte that we send is masked.
"""

import paho.mqtt.client as paho

_BINARY = 0x2  # RFC 6455 section 11.8


class WebSocketStream(paho._WebsocketWrapper):  # noqa: SLF001 - see `PRIVATE_NAMES`
    """Stands in for the connected socket below a `WholeSocket`. Its constructor does the handshake, and blocks."""

    def recv(self, length: int) -> bytes:
        """What has come, of as many frames as there are, up to a length; empty at the end of the stream.

        Raises:
            BlockingIOError: nothing has come.
            OSError: the connection is broken.
        """
        found = bytearray()
        while len(found) < length:
            try:
                part = super().recv(length - len(found))
            except BlockingIOError:
                if self.pending():  # TLS keeps decoded bytes, of which the kernel gives no sign
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
            OSError: the connection is broken, or takes nothing now.
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
        """A masked frame, whatever was asked for; a control frame waits where another one is half sent."""
        del do_masking
        frame = super()._create_frame(opcode, data)
        if opcode != _BINARY and self._sendbuffer:
            self._sendbuffer.extend(frame)
            return bytearray()
        return frame
