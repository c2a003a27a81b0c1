"""A target: the bare floor. A raw socket, the packets put together by hand, one model call a wake-up.

Usage: floor.py PORT MODEL TOPIC_IN TOPIC_OUT; with "" for MODEL it is the wire and JSON alone, without any model. No
keep-alive, no reconnection, no resend, no outbox, no checks: the least that Python can do between the wire and the
model, and not something to deploy. It publishes what the daemon publishes, field by field; for each reading it does
this: `recv`, the packet, `json.loads`, six numbers into an array, `session.run`, `json.dumps`, one `send` with the
acknowledgement of the reading.
"""

import datetime as dt
import json
import socket
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks import wire
from benchmarks.names import CHANNELS, LABELS

MOST_ROWS = 1024
RECEIVE_BYTES = 262144


def make_predict(model: str) -> Callable[[Any], list[Any]]:
    """What answers windows with labels and scores."""
    if not model:
        answers = np.zeros(MOST_ROWS, np.int64), np.full((MOST_ROWS, len(LABELS)), 0.25, np.float32)
        return lambda windows: [answer[: len(windows)] for answer in answers]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda windows: session.run(["label", "scores"], {"window": windows})


def payload(seq: int, label: int, scores: list[float]) -> bytes:
    """A prediction with the daemon's fields."""
    moment = dt.datetime.now(tz=dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    document = {
        "id": f"bench/mlp/-/1/{seq}", "seq": seq, "device": "bench", "model": "mlp", "version": "1.0.0",
        "source": "machine", "key": None, "time": moment, "label": LABELS[label], "score": scores[label],
        "scores": dict(zip(LABELS, scores, strict=True)),
    }  # fmt: skip
    return json.dumps(document, separators=(",", ":")).encode()


def main(port: int, model: str, topic_in: str, topic_out: str) -> None:
    """Serve until the broker closes the connection."""
    predict = make_predict(model)
    rows = np.empty((MOST_ROWS, 1, len(CHANNELS)), np.float32)
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(wire.connect("bench-floor") + wire.subscribe(topic_in, qos=1))
    packet_id, seq, tail = 0, 0, b""
    while data := connection.recv(RECEIVE_BYTES):
        data = tail + data
        found, used = wire.packets(data)
        tail = data[used:]
        out, count = [], 0
        for first, start, end in found:
            if first & 0xF0 != wire.PUBLISH:
                continue
            payload_at = start + 2 + int.from_bytes(data[start : start + 2], "big")
            if first & 0x06:
                out.append(b"\x40\x02" + data[payload_at : payload_at + 2])
                payload_at += 2
            values = json.loads(data[payload_at:end])
            rows[count, 0] = [values[name] for name in CHANNELS]
            count += 1
        if not count:
            continue
        labels, scores = predict(rows[:count])
        for label, row in zip(labels.tolist(), scores.tolist(), strict=True):
            packet_id = packet_id % 65535 + 1
            seq += 1
            out.append(wire.publish(topic_out, payload(seq, label, row), packet_id))
        connection.sendall(b"".join(out))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4])
