"""Clients of HTTP: so many at a time, each asking again as soon as it has its answer, in one thread on `epoll`.

Usage: clients.py PORT PATH CLIENTS SECONDS keep|close. Every request is the same reading of six axes, by name, or as a
tensor of version 2 of the protocol where PATH ends in `/infer`, sent on a connection that is kept unless an answer says
that it closes, or on a new one each. Prints one line of JSON: answers by status, seconds, median and 99th percentile of
the time to an answer in ms.
"""

import json
import random
import select
import socket
import sys
import time
from collections import Counter

from benchmarks.load import reading

RECEIVE_BYTES = 65536
LAST_WORDS_S = 5.0  # how long the requests that are under way at the end are waited for


class Client:
    """One connection, and what has come of its answer so far."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self.data = b""
        self.asked = 0.0
        self.closes = False  # the last answer reported so
        self.connect()

    def connect(self) -> None:
        """Open a connection."""
        self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """Send the request."""
        self.data = b""
        self.asked = time.perf_counter()
        self.socket.sendall(self._request)

    def hear(self) -> int:
        """Take what has come: the status when the answer is whole, else 0.

        Raises:
            ConnectionError: the server closed the connection before that.
        """
        data = self.socket.recv(RECEIVE_BYTES)
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if found:
            _, _, length = head.lower().partition(b"content-length:")
            if len(body) >= int(length.partition(b"\r\n")[0]):
                self.closes = b"\r\nconnection: close" in head.lower()
                return int(head.split(None, 2)[1])
        if not data:
            raise ConnectionError("the server closed a connection before it had answered")
        return 0


def main(port: int, path: str, count: int, seconds: float, *, keep: bool) -> dict[str, object]:
    """Ask for so many seconds."""
    body = reading(random.Random(5))
    if path.endswith("/infer"):
        values = [value for value in json.loads(body).values() if isinstance(value, float)]
        tensor = {"name": "window", "shape": [1, 1, len(values)], "datatype": "FP32", "data": values}
        body = json.dumps({"inputs": [tensor]}).encode()
    closing = "" if keep else "Connection: close\r\n"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n{closing}"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    poll = select.epoll()
    clients: dict[int, Client] = {}
    statuses: Counter[int] = Counter()
    times: list[float] = []
    start = time.perf_counter()
    end = start + seconds
    for _ in range(count):
        client = Client(port, request)
        clients[client.socket.fileno()] = client
        poll.register(client.socket, select.EPOLLIN)
        client.ask()
    while clients and time.perf_counter() < end + LAST_WORDS_S:
        for number, _ in poll.poll(1.0):
            client = clients[number]
            status = client.hear()
            if not status:
                continue
            now = time.perf_counter()
            if now < end:
                statuses[status] += 1
                times.append(now - client.asked)
            if keep and now < end and not client.closes:
                client.ask()
                continue
            poll.unregister(number)
            client.socket.close()
            del clients[number]
            if now < end:
                client.connect()
                clients[client.socket.fileno()] = client
                poll.register(client.socket, select.EPOLLIN)
                client.ask()
    times.sort()
    return {
        "statuses": {str(status): found for status, found in statuses.items()},
        "seconds": seconds,
        "unanswered": len(clients),
        "p50_ms": times[len(times) // 2] * 1000 if times else None,
        "p99_ms": times[int(len(times) * 0.99)] * 1000 if times else None,
    }


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(main(int(words[0]), words[1], int(words[2]), float(words[3]), keep=words[4] == "keep")))
