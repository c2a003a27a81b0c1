"""The documents about the daemon: health, models, one line for systemd, and the output of `status`.

Each document is made from the running parts on request; nothing is kept here. The numbers are the counters of the
stages.
"""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edge_runtime import __version__
from edge_runtime.config.tables import Config
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.mqtt.any_connection import AnyConnection
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.system.counters import Counters, machine_state
from edge_runtime.system.memory import resident_bytes


class SourceState(Protocol):
    """The part of a source that the documents show."""

    @property
    def is_open(self) -> bool:
        """Whether readings can arrive."""

    @property
    def state(self) -> str:
        """One line for people."""


class Standings(Protocol):
    """The part of the exchange that the documents use."""

    def standing(self, pipeline: Pipeline) -> tuple[str, str | None]:
        """State and reason of the bundle that a pipeline runs."""

    def beside(self, pipeline: Pipeline) -> dict[str, Any] | None:
        """The shadow beside it, or None."""


class CaptureState(Protocol):
    """The part of the captures that the documents use."""

    def document(self) -> dict[str, Any]:
        """Their state and counts."""


class OutputState(Protocol):
    """The part of sinks and edge node that the documents use."""

    def document(self) -> dict[str, Any]:
        """The member `sinks`, and `sparkplug` if there is one."""


class Described(Protocol):
    """The running parts that the documents are made of."""

    started: float
    start_number: int
    upstream_connection: AnyConnection
    outbox: Outbox

    @property
    def config(self) -> Config:
        """The configuration that runs."""

    @property
    def exchange(self) -> Standings | None:
        """The exchange of bundles; None without a store."""

    @property
    def captures(self) -> CaptureState | None:
        """The windows kept for labelling; None without captures."""

    @property
    def accuracy(self) -> Mapping[str, Mapping[str, Any]]:
        """The accuracy of each model, if it is known."""

    @property
    def counters(self) -> Mapping[str, Counters]:
        """The counters of every part, present or former."""

    @property
    def pipelines(self) -> Sequence[Pipeline]:
        """Every running model."""

    @property
    def connections(self) -> Sequence[AnyConnection]:
        """The connections to all brokers."""

    @property
    def sources(self) -> Sequence[tuple[str, SourceState]]:
        """The sources with their names."""

    @property
    def outputs(self) -> OutputState:
        """The outputs of predictions beside the upstream."""


def health_document(daemon: Described) -> dict[str, Any]:
    """The health document: totals first, then a part for every stage."""
    totals: dict[str, dict[str, int]] = {"rejected": {}, "skipped": {}, "dropped": {}, "errors": {}}
    for counters in daemon.counters.values():
        for name, total in totals.items():
            for reason, count in getattr(counters, name).items():
                if count:
                    total[reason] = total.get(reason, 0) + count
    outbox = daemon.counters["outbox"].counts
    usage, accuracy = resource.getrusage(resource.RUSAGE_SELF), daemon.accuracy
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": daemon.config.device.id,
        "runtime": __version__,
        "start": daemon.start_number,
        "uptime_s": round(time.monotonic() - daemon.started, 1),
        "machine": machine_state(),
        "readings": sum(counters.counts["readings"] for counters in daemon.counters.values()),
        "predictions": sum(pipeline.counters.counts["predictions"] for pipeline in daemon.pipelines),
        "last_prediction": max((p.last_prediction for p in daemon.pipelines if p.last_prediction), default=None),
        "published": outbox["published"],
        "queued": daemon.outbox.queued,
        **totals,
        "outbox": {
            "state": daemon.outbox.state,
            "rows": daemon.outbox.stored_rows,
            "memory_bytes": daemon.outbox.memory_bytes,
            "stored": outbox["stored"],
            "quarantined": daemon.outbox.quarantine.count,
            "last_quarantined": daemon.outbox.quarantine.last,
        },
        "link": {connection.name: connection.state for connection in daemon.connections},
        "connected": {connection.name: connection.connected for connection in daemon.connections},
        "broker": _broker_in_use(daemon),
        "sources": {
            name: {
                "open": source.is_open,
                "state": source.state,
                "skipped": {},
                **daemon.counters[f"source {name}"].document(),
                "last_rejected": dict(daemon.counters[f"source {name}"].last_rejected),
            }
            for name, source in daemon.sources
        },
        "models": {
            pipeline.config.name: {
                "version": pipeline.model.manifest.version,
                "keys": len(pipeline.windows),
                "gaps": pipeline.windows.gaps,
                **_rate(pipeline),
                **({} if pipeline.drift is None else {"drift": pipeline.drift.summary()}),
                "latency_ms": pipeline.latencies.quantiles_ms(),
                **_accuracy(accuracy.get(pipeline.config.name)),
                **pipeline.counters.document(),
            }
            for pipeline in daemon.pipelines
        },
        **({} if daemon.captures is None else {"capture": daemon.captures.document()}),
        **daemon.outputs.document(),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "rss_bytes": resident_bytes(),
    }


def _rate(pipeline: Pipeline) -> dict[str, Any]:
    """The measured rate, as the median over the keys, and whether it matches the bundle."""
    rate_hz = None if pipeline.pace is None else pipeline.pace.rate_hz
    return {
        "rate_hz": None if rate_hz is None else float(f"{rate_hz:.4g}"),
        "rate": "unknown" if pipeline.pace is None else pipeline.pace.state,
    }


def _accuracy(found: Mapping[str, Any] | None) -> dict[str, Any]:
    """The accuracy of a model in short form; empty if unknown."""
    if found is None:
        return {}
    short = {name: found[name] for name in ("n", "accuracy", "interval", "estimated")}
    errors = found.get("errors")
    return {"accuracy": {**short, **({"mae": {name: each["mae"] for name, each in errors.items()}} if errors else {})}}


def models_document(daemon: Described) -> list[dict[str, Any]]:
    """The document of `edge/{device}/models`."""
    found: list[dict[str, Any]] = []
    for pipeline in daemon.pipelines:
        state, why = ("active", None) if daemon.exchange is None else daemon.exchange.standing(pipeline)
        manifest, digest = pipeline.model.manifest, pipeline.model.bundle.digest
        about = {"name": pipeline.config.name, "bundle": manifest.name, "version": manifest.version}
        found.append({**about, "digest": digest, "state": state, "why": why})
        if daemon.exchange is not None and (beside := daemon.exchange.beside(pipeline)) is not None:
            found[-1]["shadow"] = beside
    return found


def status_line(daemon: Described) -> str:
    """One line for `systemctl status`."""
    closed = [name for name, source in daemon.sources if not source.is_open]
    published = daemon.counters["outbox"].counts["published"]
    parts = [f"{published} published, {daemon.outbox.queued} queued", daemon.upstream_connection.state]
    if closed:
        parts.append(f"waiting for {', '.join(closed)}")
    return "; ".join(parts)


def status_document(daemon: Described) -> dict[str, Any]:
    """What `edge-runtime status` shows: the health document, the models, their accuracy, and the process."""
    about = {
        "accuracy": dict(daemon.accuracy),
        "pid": os.getpid(),
        "written": time.time(),
        "slots": models_document(daemon),
    }
    return health_document(daemon) | about


def _broker_in_use(daemon: Described) -> dict[str, Any]:
    """The present broker of predictions, and the number of changes."""
    connection, counts = daemon.upstream_connection, daemon.counters["upstream"].counts
    standing = {"url": connection.url, "fallback": connection.is_fallback}
    return {**standing, "failovers": counts["failovers"], "returns": counts["returns"]}
