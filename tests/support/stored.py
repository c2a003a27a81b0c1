"""A device whose model comes from the store, at work under a steady load."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_runtime.bundle.measured import Measured
from edge_runtime.bundle.open import Bundle
from edge_runtime.bundle.selftest import Budget
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from tests.support import builders
from tests.support.bad_models import GOOD
from tests.support.daemon import Daemon
from tests.support.subscriber import Message, Subscriber
from tests.support.waiting import Deadline

PAUSE_S = 0.05  # between two handfuls of readings; the load is what is tested here
UNSIGNED = Policy(unsigned="allow")


def believed(bundle: Bundle, _budget: Budget, _place: str) -> Measured:
    """Stands in for the self-test where the daemon is what is tested."""
    manifest = bundle.manifest
    return Measured(manifest.name, manifest.version, bundle.digest, 4, 1.0, 1.0, 1.0, 1, 1, "", "")


@dataclass
class Rig:
    """A device at work, its store, and a client that sends it readings."""

    folder: Path
    daemon: Daemon
    client: Subscriber
    store: ModelStore
    rate_hz: int = 300
    sent: int = 0
    sent_at: list[float] = field(default_factory=list)
    _looked: int = 0
    _models: Message | None = None

    def install(self, draft: builders.Draft, *, shadow: bool = False) -> None:
        """Make a bundle active, or the shadow of the active one."""
        path = draft.save(self.folder / f"{draft.manifest['version']}.onnx")
        self.store.install(path, replace(UNSIGNED, shadow=shadow))

    def send(self, count: int, temperature: float = GOOD) -> None:
        """Readings of three keys, numbered on."""
        for number in range(self.sent, self.sent + count):
            reading = {"temperature": temperature, "humidity": 0.2, "id": number}
            self.sent_at.append(time.monotonic())
            self.client.publish(f"sensors/k{number % 3}/climate", reading)
        self.sent += count

    def state(self) -> tuple[str, str, str]:
        """Version, state and reason, as the device last reported them."""
        messages = self.client.messages
        if len(messages) < self._looked:  # they were cleared
            self._looked, self._models = 0, None
        new = messages[self._looked :]  # only what is new: at full load there are a hundred thousand
        self._looked += len(new)
        self._models = next((each for each in reversed(new) if each.topic == "edge/room/models"), self._models)
        blank = {"version": "", "state": "", "why": None}
        newest: Any = blank if self._models is None else self._models.document[0]
        return newest["version"], newest["state"], newest["why"] or ""

    def send_until(
        self, done: Callable[[], bool], what: str, temperature: float = GOOD, deadline: float = 60.0
    ) -> None:
        """Keep the load up until something has happened.

        Raises:
            AssertionError: it did not happen in time.
        """
        started, until = time.monotonic(), Deadline(deadline)
        for handful in itertools.count(1):
            self.send(int(self.rate_hz * PAUSE_S), temperature)
            if done():
                return
            assert not until.over, f"waited in vain for {what}; {self.daemon.log[-2000:]}"
            time.sleep(max(0.0, started + handful * PAUSE_S - time.monotonic()))

    def answers(self) -> list[Any]:
        """The predictions so far, in order of arrival."""
        return self.client.on("edge/room/comfort/")
