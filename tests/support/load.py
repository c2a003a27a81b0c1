"""A load of numbered readings, and the count of what was answered."""

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.subscriber import Subscriber


@contextmanager
def endless_readings(client: Subscriber, pause: float) -> Iterator[list[int]]:
    """Readings without end, on three keys, each with its number; what is yielded grows, and is complete at the end."""
    sent: list[int] = []
    stop = threading.Event()

    def run() -> None:
        for number in itertools.count(1):
            if stop.wait(pause):
                return
            reading = {"temperature": number % 50, "humidity": 40.0, "seq": number}
            client.publish(f"sensors/{'abc'[number % 3]}/climate", reading)
            sent.append(number)

    thread = threading.Thread(target=run, name="readings")
    thread.start()
    try:
        yield sent
    finally:
        stop.set()
        thread.join()
    client.flush()


def answered(client: Subscriber) -> Counter[int]:
    """How often each reading was answered, by its number, as this client has heard it."""
    return Counter(int(m.document["id"].rpartition("/")[2]) for m in client.on("edge/room/comfort/"))
