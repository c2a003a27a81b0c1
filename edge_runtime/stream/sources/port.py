"""Opens one serial port: raw, non-blocking, exclusive, and without resetting the connected board at a reopening.

Guarantee: `open_port` either returns an open port or raises `PortError` and leaves no descriptor behind.
"""

import contextlib
import errno
import fcntl
import os
import termios
from typing import Any, Protocol

from edge_runtime.errors import TransientError

# Major numbers of the terminal side of pseudo-terminals (Documentation/admin-guide/devices.txt of the kernel).
_PSEUDO_TERMINALS = range(136, 144)
PARITIES = {"none": "N", "even": "E", "odd": "O", "mark": "M", "space": "S"}


class LineSettings(Protocol):
    """The keys of a table that describe a serial line."""

    @property
    def baudrate(self) -> int:
        """Bits per second."""

    @property
    def bytesize(self) -> int:
        """Data bits of a character."""

    @property
    def parity(self) -> str:
        """The name of the parity bit."""

    @property
    def stopbits(self) -> int:
        """Stop bits after a character."""


class PortSettings(LineSettings, Protocol):
    """The keys of a table that describe a port."""

    @property
    def port(self) -> str:
        """The device node."""

    @property
    def flow_control(self) -> str:
        """How the sender is paused."""

    @property
    def dtr(self) -> bool | None:
        """The state of DTR after opening; None leaves it to the operating system."""

    @property
    def rts(self) -> bool | None:
        """The state of RTS after opening; None leaves it to the operating system."""


class PortError(TransientError):
    """A port cannot be opened now; `reason` is the name of the counter, the text is the message."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def open_port(config: PortSettings) -> int:
    """Open and configure the port that the path names now; returns its descriptor, which `close_port` closes.

    Raises:
        PortError: `absent`, `busy`, `not_permitted` or `open_failed`.
    """
    import serial  # noqa: PLC0415 - a device without serial sources need not load it

    class Port(serial.Serial):  # type: ignore[misc]
        def _reset_input_buffer(self) -> None:
            """Keep the bytes that the device has sent already: the framer drops only the first line of them."""

    port: Any = Port()
    port.port = config.port
    port.baudrate = config.baudrate
    port.bytesize = config.bytesize
    port.parity = PARITIES[config.parity]
    port.stopbits = config.stopbits
    port.rtscts = config.flow_control == "rtscts"
    port.xonxoff = config.flow_control == "xonxoff"
    if config.dtr is not None:
        port.dtr = config.dtr
    if config.rts is not None:
        port.rts = config.rts
    port.timeout = 0
    # VMIN 1, VTIME 0: then an empty read always means a hang-up, never the mere absence of data.
    port.inter_byte_timeout = 0
    port.exclusive = True
    # pyserial does not convert termios.error, which is no OSError, and ValueError for a speed that the driver refuses.
    try:
        port.open()
        # pyserial keeps four further descriptors for each port. A duplicate keeps settings and lock without them.
        fd = os.dup(port.fd)
        with contextlib.suppress(OSError):
            port.close()
    except (OSError, ValueError, termios.error) as error:
        raise port_error(config.port, error) from error
    try:
        _claim(fd)
    except (OSError, termios.error) as error:
        close_port(fd)
        raise port_error(config.port, error) from error
    return fd


def close_port(fd: int) -> None:
    """Close the port. Never raises, even if the device is gone."""
    with contextlib.suppress(OSError):  # the device is gone, and the exclusive mode with it
        fcntl.ioctl(fd, termios.TIOCNXCL)
    with contextlib.suppress(OSError):  # the descriptor is closed all the same: close(2) reports only failed writes
        os.close(fd)


def _claim(fd: int) -> None:
    """Set exclusive mode against programs without the lock; keep DTR set at close, so that reopening is no reset."""
    if os.major(os.fstat(fd).st_rdev) not in _PSEUDO_TERMINALS:
        # The other end of a pseudo-terminal may outlive this process, and keep the exclusive mode of a killed one.
        fcntl.ioctl(fd, termios.TIOCEXCL)
    attributes = termios.tcgetattr(fd)
    attributes[2] &= ~termios.HUPCL
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def port_error(path: str, error: Exception) -> PortError:
    """The `PortError` for an error at the opening of a port."""
    number = error.args[0] if error.args and isinstance(error.args[0], int) else None
    if number in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
        return PortError("absent", f"{path}: no such port: waiting until it is plugged in")
    if number in {errno.EAGAIN, errno.EBUSY}:
        return PortError("busy", f"{path}: another process holds the port: stop it (ModemManager is a frequent one)")
    if number in {errno.EACCES, errno.EPERM}:
        return PortError("not_permitted", f"{path}: not permitted: add the user of this service to the port's group")
    return PortError("open_failed", f"{path}: cannot be opened as a serial port: {error}")
