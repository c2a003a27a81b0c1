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
    """Bytes keep their order over several fills, and what is not there yet is reported to be so."""
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


class _Taker:
    """Notes its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, int]] = []

    def took_message(
        self, topic: bytes, payload: bytes, packet_id: int, *, retained: bool, repeated: bool = False
    ) -> None:
        self.calls.append((payload, packet_id))

    def took_acknowledgement(self, packet_id: int, reason: int) -> None:
        self.calls.append((b"ack", packet_id))

    def took_too_long(self, topic: bytes, packet_id: int, size: int) -> None:
        self.calls.append((b"%s: %d" % (topic, size), packet_id))


def test_a_message_without_end_is_never_kept(line: tuple[WholeSocket, socket.socket]) -> None:
    """However its bytes come, no more than its head is held, and what comes behind it is understood."""
    whole, far = line
    whole.most_bytes = 100_000
    taker = _Taker()
    head = hot_packets.topic_head("a")
    long = hot_packets.publish(head, bytes(3_000_000), 2000, retain=False, properties=b"")
    short = hot_packets.publish(head, b"x", 2001, retain=False, properties=b"")
    stream = short + long + short + long + short
    for at in range(0, len(stream), 3001):
        far.sendall(stream[at : at + 3001])
        whole.fill()
        assert not whole.take(taker, is_v5=False)
        assert len(whole._partial) <= hot_packets.HEAD_BYTES + RECEIVE_BYTES
    passed_over = (b"a: %d" % len(long), 2000)
    assert taker.calls == [(b"x", 2001), passed_over, (b"x", 2001), passed_over, (b"x", 2001)]


def test_another_packet_that_is_too_long_ends_the_connection(line: tuple[WholeSocket, socket.socket]) -> None:
    """Only a message may be passed over: without the rest we would not know where we are."""
    whole, far = line
    whole.most_bytes = 100_000
    far.sendall(b"\x90\xff\xff\xff\x7f" + bytes(100_000))
    for _ in range(2):
        whole.fill()
    with pytest.raises(ValueError, match="far too long"):
        whole.take(_Taker(), is_v5=False)


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
            whole.take(_Taker(), is_v5=False)

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
