"""One Modbus line or connection, and the only caller of pymodbus. Everything here blocks, and runs in one thread.

Guarantee: `read` returns exactly the requested number of registers or bits, of the requested unit, or raises; late
answers to an earlier request are discarded before the next one. A connection that the other side has closed meanwhile
is reopened without a message. Weak point: a frame on a serial line has no number, so that an answer which is more than
a whole `timeout` late could still be taken for that of a later request of the same form.
"""

import contextlib
import logging
import socket
import termios
from collections.abc import Sequence
from typing import Any

import pymodbus
from pymodbus.client import ModbusSerialClient, ModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException

from edge_runtime.errors import TransientError
from edge_runtime.stream.sources.modbus_registers import BIT_TABLES, RegisterRun
from edge_runtime.stream.sources.port import PARITIES, LineSettings, port_error

# The supported releases: minor releases of pymodbus rename arguments.
TESTED = "3.16."
_FUNCTIONS = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}

logging.getLogger("pymodbus").setLevel(logging.CRITICAL)  # its faults are raised and logged here


class LinkError(TransientError):
    """There is no line to any unit; `reason` is the name of the counter."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class NoAnswerError(TransientError):
    """A unit gave no answer, or an invalid one."""


class RefusalError(TransientError):
    """A unit answered with an exception; `code` is that of the protocol."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exception {code}")
        self.code = code


class ModbusLink:
    """The line to all units of one source.

    Args:
        where: the port or the address, for messages.
        timeout: seconds to wait for an answer.
    """

    def __init__(self, where: str, timeout: float) -> None:
        self.where = where
        self._timeout = timeout
        self._client: ModbusSerialClient | ModbusTcpClient | None = None

    @property
    def is_open(self) -> bool:
        """Whether the line was opened and no loss of it is known."""
        return self._client is not None

    def open(self) -> None:
        """Open the line, if it is not open.

        Raises:
            LinkError: it cannot be opened now.
        """
        if self._client is None:
            self._client = self._made()

    def close(self) -> None:
        """Close the line; does nothing if it is not open."""
        client: Any = self._client  # its `close` has no types
        self._client = None
        if client is not None:
            with contextlib.suppress(OSError, termios.error):  # the device may be gone
                client.close()

    def read(self, unit: int, run: RegisterRun) -> Sequence[int]:
        """The registers, or bits, of a run.

        Raises:
            LinkError: the line is lost; it is closed now.
            NoAnswerError: no valid answer arrived in time.
            RefusalError: the unit answered with an exception.
        """
        if self._is_over():
            self.close()
            self.open()
        assert self._client is not None, "open has made it"
        code = _FUNCTIONS[run.table]
        ask: Any = {
            1: self._client.read_coils,
            2: self._client.read_discrete_inputs,
            3: self._client.read_holding_registers,
            4: self._client.read_input_registers,
        }[code]
        try:
            answer = ask(run.address, count=run.count, device_id=unit)
        except (ConnectionException, OSError, termios.error) as error:
            self.close()
            raise LinkError("disconnected", f"{self.where}: lost: opening it again") from error
        except ModbusException as error:
            raise NoAnswerError(f"no valid answer within {self._timeout:g} s") from error
        except Exception as error:  # a malformed answer can raise any error in pymodbus's parser
            raise NoAnswerError(f"an answer that is none ({type(error).__name__})") from error
        if answer.isError():
            raise RefusalError(answer.exception_code)
        found: Sequence[int] = answer.bits if run.table in BIT_TABLES else answer.registers
        most = run.count if run.table not in BIT_TABLES else -(-run.count // 8) * 8
        if answer.function_code != code or not run.count <= len(found) <= most:
            raise NoAnswerError(f"an answer to another request ({len(found)} values of {run.count})")
        return found[: run.count]

    def _made(self) -> ModbusSerialClient | ModbusTcpClient:
        raise NotImplementedError

    def _is_over(self) -> bool:
        """Whether the opened line is gone. Discards late answers."""
        return self._client is None or self._client.socket is None


class TcpLink(ModbusLink):
    """Modbus TCP."""

    def __init__(self, host: str, port: int, *, where: str, timeout: float) -> None:
        super().__init__(where, timeout)
        self._host = host
        self._port = port

    def _made(self) -> ModbusTcpClient:
        try:
            connected = socket.create_connection((self._host, self._port), timeout=self._timeout)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            text = f"{self.where}: cannot be reached ({why}): look at the network and at url"
            raise LinkError("connect_failed", text) from error
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setblocking(False)  # pymodbus waits by `select`
        client = ModbusTcpClient(self._host, port=self._port, timeout=self._timeout, retries=0)
        client.socket = connected
        return client

    def _is_over(self) -> bool:
        connected = self._client.socket if isinstance(self._client, ModbusTcpClient) else None
        try:
            while connected is not None and connected.recv(4096):
                pass
        except BlockingIOError:
            return False
        except OSError:  # a reset ends it like an orderly close
            return True
        return True


class SerialLink(ModbusLink):
    """Modbus RTU over a port. pymodbus itself discards the bytes that are in the port before a request."""

    def __init__(self, port: str, settings: LineSettings, *, timeout: float) -> None:
        super().__init__(port, timeout)
        self._port = port
        self._line: dict[str, Any] = {
            "baudrate": settings.baudrate,
            "bytesize": settings.bytesize,
            "parity": PARITIES[settings.parity],
            "stopbits": settings.stopbits,
        }

    def _made(self) -> ModbusSerialClient:
        import serial  # noqa: PLC0415 - only where there is a port

        client = ModbusSerialClient(self._port, timeout=self._timeout, retries=0, **self._line)
        times = {"timeout": self._timeout, "write_timeout": self._timeout}
        try:
            client.socket = serial.Serial(self._port, exclusive=True, **times, **self._line)
        except (OSError, ValueError, termios.error) as error:
            found = port_error(self._port, error)
            raise LinkError(found.reason, str(found)) from error
        return client


def library_fault() -> str | None:
    """Why the installed pymodbus is not supported; None if it is."""
    if pymodbus.__version__.startswith(TESTED):
        return None
    return f"expected pymodbus {TESTED}x, found {pymodbus.__version__}"
