"""Which broker holds readings back until the last packet is confirmed, told by when they come."""

import socket
from collections.abc import Iterator

import pytest

from edge_runtime.mqtt.ack_coalescing import KERNEL_DELAY_S, LATE_READINGS, AckCoalescing
from edge_runtime.mqtt.whole_socket import WholeSocket
from edge_runtime.system.loop import Loop

LATE = 0.044


class _Path:
    """Stands in for a hot path with nothing in flight."""

    in_flight, is_paused, window = 0, False, 20

    def read(self) -> None:
        """Nothing to read."""

    def flush(self) -> None:
        """Nothing to write."""


@pytest.fixture
def line() -> Iterator[tuple[AckCoalescing, WholeSocket]]:
    """What decides, over a real socket, and allowed to hold acknowledgements."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        plain = socket.create_connection(server.getsockname())
        other, _ = server.accept()
        loop, wrapped = Loop(), WholeSocket(plain)
        acks = AckCoalescing(_Path(), wrapped, loop, 0.2, prompt=True)
        acks.allow()
        yield acks, wrapped
        acks.end()
        wrapped.close()
        other.close()
        loop.close()


def test_readings_that_come_together_just_after_the_kernels_delay_are_held_back(
    line: tuple[AckCoalescing, WholeSocket],
) -> None:
    """From then on nothing waits in the socket, and what is read is confirmed at once."""
    acks, wrapped = line
    for _ in range(LATE_READINGS):
        assert acks.holding
        assert not wrapped.confirms
        acks.came_after(LATE, 4)
    assert wrapped.confirms
    assert not acks.holding
    assert not acks.watches_delay
    acks.allow()
    assert not acks.holding, "for as long as this connection lasts"


@pytest.mark.parametrize(
    ("seconds", "count"),
    [
        (0.010, 4),  # a busy source and a broker that holds nothing back
        (1.0, 1),  # a slow source
        (0.05, 1),  # twenty a second, each by itself
        (KERNEL_DELAY_S[1] + 0.001, 4),
        (KERNEL_DELAY_S[0] - 0.001, 4),
    ],
)
def test_other_brokers_and_slow_readings_cost_nothing(
    line: tuple[AckCoalescing, WholeSocket], seconds: float, count: int
) -> None:
    """Readings that come sooner, later or alone say nothing of the broker, however many there are."""
    acks, wrapped = line
    for _ in range(100):
        acks.came_after(seconds, count)
    assert acks.holding
    assert not wrapped.confirms


def test_a_chance_now_and_then_is_no_reason(line: tuple[AckCoalescing, WholeSocket]) -> None:
    """One in three that comes just then is a busy machine."""
    acks, wrapped = line
    for _ in range(50):
        acks.came_after(LATE, 2)
        acks.came_after(0.01, 1)
        acks.came_after(0.01, 1)
    assert not wrapped.confirms
