"""The server's counts: requests by route and status, and by model; of this process, or of all its siblings too."""

from collections import Counter

import msgspec

from edge_runtime.http.model_stats import ModelStats
from edge_runtime.http.shared_counts import SharedCounts
from edge_runtime.system.memory import resident_bytes


class _Document(msgspec.Struct):
    """The counts of one process, as its siblings read them."""

    requests: list[tuple[str, int, int]] = []
    models: dict[str, ModelStats] = {}
    rss_bytes: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Document).decode


class Counts:
    """The counts of this process; with `shared`, of all processes on the same address.

    Attributes:
        requests: answers by route and status.
        models: statistics of requests, by the name of their model.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.models: dict[str, ModelStats] = {}
        self._shared: SharedCounts | None = None

    def model(self, name: str) -> ModelStats:
        """The statistics of requests for the model of this name."""
        found = self.models.get(name)
        if found is None:
            found = self.models[name] = ModelStats()
        return found

    def share(self, shared: SharedCounts) -> None:
        """Count together with siblings, continuing from the counts of this process's predecessor."""
        self._shared = shared
        before = shared.read(shared.number)
        if before:
            self._add(_decode(before))

    def publish(self) -> None:
        """Write the counts where the siblings read them."""
        if self._shared is not None:
            requests = [(route, status, count) for (route, status), count in self.requests.items()]
            self._shared.write(_encode(_Document(requests, self.models, resident_bytes())))

    def together(self) -> tuple["Counts", int]:
        """The counts of all processes, and the memory of the others."""
        if self._shared is None:
            return self, 0
        self.publish()
        found, memory = Counts(), 0
        for document in (self._shared.read(self._shared.number), *self._shared.others()):
            read = _decode(document)
            found._add(read)
            memory += read.rss_bytes
        return found, memory - resident_bytes()

    def _add(self, document: _Document) -> None:
        for route, status, count in document.requests:
            self.requests[route, status] += count
        for name, stats in document.models.items():
            self.model(name).add(stats)
