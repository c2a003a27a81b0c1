"""A socket that reads and writes everything at once, on a line that takes and gives little."""

import select
import socket
from collections.abc import Iterator

import pytest

from edge_runtime.mqtt import hot_packets
from edge_runtime.mqtt.whole_socket import RECEIVE_BYTES, WholeSocket


@pytest.fixture
def line() -> Iterator[tuple[WholeSocket, socket.socket]]:
    """Our end, with small buffers below it, and the other end."""
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    near.setblocking(False)
    whole = WholeSocket(near)
    yield whole, far
    near.close()
    far.close()


def test_what_does_not_fit_leaves_piece_by_piece(line: tuple[WholeSocket, socket.socket]) -> None:
    """`send` takes everything; `flush` says when all of it is out, and no byte is lost, doubled or moved."""
    whole, far = line
    data = bytes(range(256)) * 2000
    assert whole.send(data) == len(data)
    received = bytearray()
    passes = 0
    while not whole.flush():
        passes += 1
        assert whole.has_unsent
        received += far.recv(1000)
    far.setblocking(False)
    while len(received) < len(data):
        received += far.recv(65536)
    assert bytes(received) == data
    assert passes > 10
    assert not whole.has_unsent


def test_what_arrived_is_given_out_in_the_pieces_that_are_asked_for(line: tuple[WholeSocket, socket.socket]) -> None:
    """Bytes keep their order over several fills, and what is not there yet is said to be so."""
    whole, far = line
    with pytest.raises(BlockingIOError):
        whole.recv(1)
    assert not whole.has_received
    far.sendall(b"abcdef")
    whole.fill()
    assert whole.recv(2) == b"ab"
    far.sendall(b"ghi")
    whole.fill()
    assert whole.recv(100) == b"cdefghi"
    with pytest.raises(BlockingIOError):
        whole.recv(1)


def test_the_end_of_the_stream_comes_after_the_last_byte(line: tuple[WholeSocket, socket.socket]) -> None:
    """Empty bytes for ever, as a socket's."""
    whole, far = line
    far.sendall(b"last")
    far.close()
    whole.fill()
    whole.fill()
    assert whole.recv(10) == b"last"
    assert whole.has_received
    assert whole.recv(10) == b""
    assert whole.recv(10) == b""


def test_one_fill_is_bounded(line: tuple[WholeSocket, socket.socket]) -> None:
    """However much a broker sends, so much of it at a time."""
    whole, far = line
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * RECEIVE_BYTES)
    far.setblocking(False)
    sent = far.send(bytes(3 * RECEIVE_BYTES))
    whole.fill()
    assert len(whole.recv(10 * RECEIVE_BYTES)) == min(sent, RECEIVE_BYTES)


def test_closing_sends_what_was_taken(line: tuple[WholeSocket, socket.socket]) -> None:
    """A goodbye that was written before the close arrives."""
    whole, far = line
    whole.send(b"goodbye")
    whole.set_patience(1.0)
    whole.close()
    assert far.recv(100) == b"goodbye"
    assert far.recv(100) == b""


class _Nobody:
    def took_message(self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool) -> None:
        """Look away."""

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        """Look away."""


def test_an_acknowledgement_alone_wakes_nobody_but_the_end_of_a_packet_does() -> None:
    """With `let_wait` a PUBACK stays where it is until more comes; what a message still lacks is never waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        near.setblocking(False)
        whole = WholeSocket(near)
        epoll = select.epoll()
        epoll.register(near, select.EPOLLIN)
        message = hot_packets.publish(hot_packets.topic_head("t"), b"payload", 1, retain=False, properties=b"")

        def take() -> None:
            whole.fill()
            whole.take(_Nobody(), is_v5=False)

        assert whole.let_wait(5)
        far.sendall(hot_packets.puback(1))
        assert epoll.poll(0.1) == []
        far.sendall(message[:-2])
        assert epoll.poll(5.0)
        take()
        assert epoll.poll(0.0) == []
        far.sendall(message[-2:])
        assert epoll.poll(5.0)
        take()
        far.sendall(hot_packets.puback(2))
        assert epoll.poll(0.1) == []
        assert whole.let_wait(1)
        assert epoll.poll(5.0)
        epoll.close()
