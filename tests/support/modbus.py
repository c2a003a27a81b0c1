"""Modbus devices for tests: pymodbus's own server in a thread, a cable of pseudo-terminals, and answers by hand."""

import asyncio
import os
import select
import socket
import threading
import tty
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pymodbus.server import ModbusSerialServer, ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from tests.support.ports import find_free_port, wait_for_listener

PATIENCE_S = 30.0


def device(
    number: int, *, holding: Mapping[int, int], inputs: Mapping[int, int], coils: Mapping[int, bool]
) -> SimDevice:
    """A unit with these registers and coils; the discrete inputs are the coils, turned round. All else is not there."""

    def words(values: Mapping[int, int]) -> list[SimData]:
        return [SimData(address, values=value, datatype=DataType.REGISTERS) for address, value in values.items()]

    def bits(values: Mapping[int, bool]) -> list[SimData]:
        return [SimData(address, values=value, datatype=DataType.BITS) for address, value in values.items()]

    inverted = {address: not value for address, value in coils.items()}
    return SimDevice(number, (bits(coils), bits(inverted), words(holding), words(inputs)))


class ModbusServer:
    """pymodbus's server, for units that are there; others stay silent.

    Attributes:
        requests: (unit, function, address, count) of each request that came.
    """

    def __init__(self, units: list[SimDevice], *, port: str | None = None, tcp_port: int | None = None) -> None:
        self.requests: list[tuple[int, int, int, int]] = []
        self.tcp_port = tcp_port or find_free_port()
        self._units = units
        self._port = port
        self._server: Any = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="modbus-server")
        self._thread.start()
        assert self._ready.wait(PATIENCE_S), "the server did not start"
        if port is None:
            wait_for_listener(self.tcp_port)

    def stop(self) -> None:
        """End it, and its connections; twice is no error."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._server.shutdown()))
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        given: Any = {"ignore_missing_devices": True, "trace_pdu": self._note}
        if self._port is None:
            self._server = ModbusTcpServer(self._units, address=("127.0.0.1", self.tcp_port), **given)
        else:
            self._server = ModbusSerialServer(self._units, port=self._port, baudrate=9600, **given)
        self._loop.call_soon(self._ready.set)
        await self._server.serve_forever()

    def _note(self, sending: bool, pdu: Any) -> Any:
        if not sending:
            self.requests.append((pdu.dev_id, pdu.function_code, pdu.address, pdu.count))
        return pdu


class SerialCable:
    """Two pseudo-terminals that are joined: what is written to one path is read from the other."""

    def __init__(self, folder: Path) -> None:
        self._pairs = [os.openpty(), os.openpty()]
        self.paths: list[str] = []
        for index, (_, slave) in enumerate(self._pairs):
            tty.setraw(slave)
            path = folder / f"end{index}"
            path.symlink_to(os.ttyname(slave))
            self.paths.append(str(path))
        self._end_read, self._end_write = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="cable")
        self._thread.start()

    def cut(self) -> None:
        """Take it away."""
        os.write(self._end_write, b"\0")
        self._thread.join(PATIENCE_S)
        for fd in (*self._pairs[0], *self._pairs[1], self._end_read, self._end_write):
            os.close(fd)

    def _carry(self) -> None:
        (first, _), (second, _) = self._pairs
        other = {first: second, second: first}
        while True:
            ready, _, _ = select.select([first, second, self._end_read], [], [])
            if self._end_read in ready:
                return
            for fd in ready:
                os.write(other[fd], os.read(fd, 4096))


class HandWritten:
    """A device whose answers a test has written byte by byte: for each request what comes back, or nothing.

    Args:
        answer: what comes back for a request.
        folder: where the path of a serial line is made; without it the device listens on a TCP port.
        closes: whether it ends the connection after each answer, as gateways do with what is idle.

    Attributes:
        asked: the requests as they came.
        tcp_port: where it listens.
        path: of its serial line.
    """

    def __init__(self, answer: Callable[[bytes], bytes], *, folder: Path | None = None, closes: bool = False) -> None:
        self.asked: list[bytes] = []
        self.tcp_port, self.path = 0, ""
        self._answer = answer
        self._closes = closes
        self._end_read, self._end_write = os.pipe()
        self._fds = [self._end_read, self._end_write]
        if folder is None:
            listener = socket.create_server(("127.0.0.1", 0))
            self.tcp_port = listener.getsockname()[1]
            self._thread = threading.Thread(target=lambda: self._listen(listener), name="hand-written")
        else:
            master, slave = os.openpty()
            tty.setraw(slave)
            self._fds += [master, slave]
            path = folder / "port"
            path.symlink_to(os.ttyname(slave))
            self.path = str(path)
            self._thread = threading.Thread(target=lambda: self._speak(master), name="hand-written")
        self._thread.start()

    def stop(self) -> None:
        """End it; twice is no error."""
        if not self._fds:
            return
        os.write(self._end_write, b"\0")
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

    def _listen(self, listener: socket.socket) -> None:
        with listener:
            while True:
                ready, _, _ = select.select([listener.fileno(), self._end_read], [], [])
                if self._end_read in ready:
                    return
                connected, _ = listener.accept()
                with connected:
                    if self._speak(connected.fileno()):
                        return

    def _speak(self, fd: int) -> bool:
        """Answer until the other side has closed; True when the end was asked for."""
        while True:
            ready, _, _ = select.select([fd, self._end_read], [], [])
            if self._end_read in ready:
                return True
            try:
                request = os.read(fd, 260)
            except OSError:
                return False
            if not request:
                return False
            self.asked.append(request)
            os.write(fd, self._answer(request))
            if self._closes:
                return False
