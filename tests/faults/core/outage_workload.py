"""A long outage in a process of its own, so that its memory can be weighed: `outage_workload.py FILE ROWS MAX_BYTES`.

Real loop, real disk thread, real outbox; only the broker is made up, and acknowledges at once. Prints one JSON
object of figures.
"""

import json
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from edge_runtime.delivery.outbox import PRIORITY_ALARM, PRIORITY_ROUTINE, Outbox
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.delivery.outbox_thread import OutboxThread
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop

STREAMS = 7
LIVE_EVERY = 200


class Broker:
    """Takes everything that is sent while the link is up, and acknowledges it in the next pass."""

    def __init__(self, loop: Loop) -> None:
        self.connected = False
        self.window = 20
        self.wrong = 0
        self.arrived = 0
        self.live: dict[int, int] = {}
        self._loop = loop
        self._newest: dict[str, int] = {}
        self._owed: deque[Callable[[bool], None]] = deque()

    def publish(
        self, topic: str, payload: bytes, *, qos: int, retain: bool = False, outcome: Callable[[bool], None] | None
    ) -> bool:
        """As `Connection.publish`."""
        if not self.connected:
            return False
        number = int(json.loads(payload)["seq"])
        if number <= self._newest.get(topic, 0):
            self.wrong += 1
        self._newest[topic] = number
        self.arrived += 1
        if topic == "live":
            self.live[number] = self.arrived
        assert outcome is not None
        if not self._owed:
            self._loop.call_soon(self._acknowledge)
        self._owed.append(outcome)
        return True

    def _acknowledge(self) -> None:
        for _ in range(len(self._owed)):
            self._owed.popleft()(True)


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _disk(path: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in path.parent.glob(f"{path.name}*"))


def main() -> None:
    """Fill, then drain."""
    path, rows, max_bytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    loop, counters = Loop(), Counters()
    store = OutboxThread(OutboxFile(path, max_bytes, 1e9), loop.call_soon_threadsafe)
    outbox = Outbox(loop, counters, store=store, commit_interval=0.05, max_memory_bytes=4 << 20)
    broker = Broker(loop)
    outbox.attach(broker)
    rng = random.Random(20261123)
    largest = base = 0
    for number in range(1, rows + 1):
        fill = rng.randbytes(90).hex()
        payload = json.dumps({"id": f"d/m/{number % STREAMS}/1/{number}", "seq": number, "fill": fill}).encode()
        priority = PRIORITY_ALARM if number % 100 == 0 else PRIORITY_ROUTINE
        outbox.offer(f"m/{number % STREAMS}", f"edge/{number % STREAMS}", payload, priority=priority, receipt=None)
        while outbox.memory_bytes > 1 << 17:
            loop.run_once(0.1)
        if number % 2000 == 0:
            largest = max(largest, _disk(path))
        if number == 3000:
            base = _rss()
    while outbox.stored_rows + counters.dropped.total() < rows:
        loop.run_once(0.1)
    filled_rss, stored = _rss(), outbox.stored_rows
    largest = max(largest, _disk(path))
    broker.connected = True
    outbox.link_changed()
    started = time.monotonic()
    peak, offered_at, delays = filled_rss, 0, []
    live = 0
    deadline = time.monotonic() + 3000
    while outbox.queued and time.monotonic() < deadline:
        loop.run_once(0.1)
        if broker.arrived - offered_at >= LIVE_EVERY:
            offered_at = broker.arrived
            live += 1
            outbox.offer("live/-", "live", b'{"seq":%d}' % live, priority=PRIORITY_ROUTINE, receipt=None)
            delays.append(broker.live.get(live, broker.arrived + broker.window) - offered_at)
            peak = max(peak, _rss())
    figures = {
        "offered": rows,
        "stored": stored,
        "dropped": dict(counters.dropped),
        "arrived": broker.arrived,
        "live": live,
        "out_of_order": broker.wrong,
        "live_waited_for_most": max(delays, default=0),
        "rss_growth_while_filling": filled_rss - base,
        "rss_growth_while_draining": peak - filled_rss,
        "largest_disk": largest,
        "max_bytes": max_bytes,
        "drained_per_second": round(broker.arrived / (time.monotonic() - started)),
        "left": outbox.queued,
    }
    sys.stdout.write(json.dumps(figures))
    store.stop(5.0)


if __name__ == "__main__":
    main()
