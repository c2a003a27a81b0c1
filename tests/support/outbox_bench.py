"""An outbox between a stepped loop, a stepped link and a file on a disk, for tests that go through it step by step."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

from edge_runtime.delivery.outbox import PRIORITY_ROUTINE, Outbox
from edge_runtime.readings import Receipt
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLink, SteppedLoop, SteppedStore


class OutboxBench:
    """An outbox with everything around it."""

    def __init__(
        self, path: Path | None, *, memory: int = 1 << 30, window: int = 4, begin: bool = True, **options: Any
    ) -> None:
        self.loop = SteppedLoop()
        self.link = SteppedLink(window=window)
        self.counters = Counters()
        self.released: list[str] = []
        self.states: list[str] = []
        self.numbers = itertools.count(1)
        self.store = None if path is None else SteppedStore(path, max_bytes=options.pop("max_bytes", 1 << 30))
        self.outbox = Outbox(
            self.loop.as_loop,
            self.counters,
            store=None if self.store is None else self.store.as_thread,
            commit_interval=options.pop("commit_interval", 1.0),
            max_memory_bytes=memory,
            **options,
        )
        self.outbox.on_state = self.states.append
        self.outbox.attach(self.link)
        if begin:
            self.work()

    def offer(
        self, stream: str = "m/a", *, receipt: bool = False, priority: int = PRIORITY_ROUTINE, size: int = 0
    ) -> str:
        """A prediction with its number as id; what is in `fill` cannot be packed."""
        number = next(self.numbers)
        name = f"{stream}/{number}"
        fill = random.Random(number).randbytes(size).hex()[:size]  # nothing that packs to nothing
        payload = json.dumps({"id": name, "seq": number, "fill": fill}).encode()
        held = Receipt(lambda: self.released.append(name)) if receipt else None
        self.outbox.offer(stream, f"edge/{stream}", payload, priority=priority, receipt=held)
        return name

    def work(self) -> None:
        """Everything that is due now happens, on the loop and on the disk."""
        for _ in range(50):
            self.loop.settle()
            if self.store is None or self.store.is_idle:
                return
            self.store.work()

    def wait(self, seconds: float) -> None:
        """Time passes, in steps that a disk can follow."""
        for _ in range(round(seconds / 0.1)):
            self.loop.advance(0.1)
            self.work()

    def link_up(self) -> None:
        """The broker accepts us."""
        self.link.connected = True
        self.outbox.link_changed()
        self.work()

    def link_down(self, arriving: int = 0) -> None:
        """The link ends; so many messages have arrived, but no acknowledgement of them."""
        self.link.break_down(arriving)
        self.outbox.link_changed()
        self.work()

    def note_calls(self, name: str) -> list[float]:
        """When the disk is asked for this from now on."""
        asked: list[float] = []
        assert self.store is not None
        ask = getattr(self.store, name)

        def noting(*arguments: Any) -> None:
            asked.append(self.loop.now)
            ask(*arguments)

        setattr(self.store, name, noting)
        return asked

    def acknowledge_all(self) -> None:
        """Until nothing is left on the wire."""
        for _ in range(2000):
            if not self.link.acknowledge(self.link.window):
                return
            self.work()
        raise AssertionError("it never ends")

    @property
    def arrived(self) -> list[str]:
        """Ids, in the order of their arrival."""
        return [document["id"] for document in self.link.arrived]

    @property
    def on_wire(self) -> list[str]:
        """Ids of what is sent and not yet acknowledged."""
        return [json.loads(sent.payload)["id"] for sent in self.link.wire]
