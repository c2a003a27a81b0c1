"""The statistics of requests for one model: counts, times and a histogram, for `/metrics` and the protocol.

Guarantee: the size is fixed, whatever clients send. One thread writes and reads it. Weak point: a request that is
scored together with others counts the whole call as its own, as Triton does.
"""

import time
from bisect import bisect_left
from typing import Any

import msgspec

from edge_runtime.http.scorer import MAX_WINDOWS, Work

FAILED = 400  # the first status of a refusal
BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class ModelStats(msgspec.Struct):
    """The statistics since the start of the process; another bundle of the same name continues them.

    Attributes:
        answered: requests by status.
        rows: windows of requests that were answered with scores.
        buckets: of these requests, the number for each duration of `BUCKETS_S`, and the number of longer ones.
        total_ns: of these requests, the total duration; `read_ns`, `queue_ns`, `model_ns` and `write_ns` are its parts.
        failed_ns: the total duration of the other requests.
        calls: of the model.
        by_rows: windows of a call -> the number of such calls, and their nanoseconds.
        last_ms: the time of the model's last call, in milliseconds since 1970.
    """

    answered: dict[int, int] = {}
    rows: int = 0
    buckets: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    total_ns: int = 0
    failed_ns: int = 0
    read_ns: int = 0
    queue_ns: int = 0
    model_ns: int = 0
    write_ns: int = 0
    calls: int = 0
    by_rows: dict[int, tuple[int, int]] = {}
    last_ms: int = 0

    def note_call(self, rows: int, ns: int) -> None:
        """The model has scored so many windows in one call."""
        self.calls += 1
        self.last_ms = int(time.time() * 1000)
        rows = min(rows, MAX_WINDOWS)
        calls, spent = self.by_rows.get(rows, (0, 0))
        self.by_rows[rows] = calls + 1, spent + ns

    def note_answer(self, status: int, began: int, work: Work | None) -> None:
        """A request has its answer.

        Args:
            status: of the answer.
            began: the arrival of its head, by `time.perf_counter_ns`.
            work: of its model; None if it was refused before that.
        """
        self.answered[status] = self.answered.get(status, 0) + 1
        now = time.perf_counter_ns()
        if work is None or status >= FAILED:
            self.failed_ns += now - began
            return
        self.rows += len(work.windows)
        self.total_ns += now - began
        self.buckets[bisect_left(BUCKETS_S, (now - began) / 1e9)] += 1
        self.read_ns += work.asked - began
        self.queue_ns += max(0, work.begun - work.asked)
        self.model_ns += work.model_ns
        self.write_ns += max(0, now - work.begun - work.model_ns)

    def add(self, other: "ModelStats") -> None:
        """Add the counts of another process."""
        for name in ("rows", "total_ns", "failed_ns", "read_ns", "queue_ns", "model_ns", "write_ns", "calls"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for status, count in other.answered.items():
            self.answered[status] = self.answered.get(status, 0) + count
        self.buckets = [mine + its for mine, its in zip(self.buckets, other.buckets, strict=True)]
        for rows, (calls, ns) in other.by_rows.items():
            mine = self.by_rows.get(rows, (0, 0))
            self.by_rows[rows] = mine[0] + calls, mine[1] + ns
        self.last_ms = max(self.last_ms, other.last_ms)

    @property
    def successes(self) -> int:
        """The number of requests that were answered with scores."""
        return sum(self.buckets)

    def document(self, name: str, version: str) -> dict[str, Any]:
        """One of the `model_stats` of the protocol's statistics extension, as Triton has it."""
        count = self.successes
        failed = sum(number for status, number in self.answered.items() if status >= FAILED)

        def took(ns: int, times: int = count) -> dict[str, int]:
            return {"count": times, "ns": ns}

        return {
            "name": name,
            "version": version,
            "last_inference": self.last_ms,
            "inference_count": self.rows,
            "execution_count": self.calls,
            "inference_stats": {
                "success": took(self.total_ns),
                "fail": took(self.failed_ns, failed),
                "queue": took(self.queue_ns),
                "compute_input": took(self.read_ns),
                "compute_infer": took(self.model_ns),
                "compute_output": took(self.write_ns),
                "cache_hit": took(0, 0),
                "cache_miss": took(0, 0),
            },
            "response_stats": {},
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": took(0, calls),
                    "compute_infer": took(ns, calls),
                    "compute_output": took(0, calls),
                }
                for rows, (calls, ns) in sorted(self.by_rows.items())
            ],
            "memory_usage": [],
        }
