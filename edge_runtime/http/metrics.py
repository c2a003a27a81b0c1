"""The health document as Prometheus text, version 0.0.4. Names carry their unit; counters end in `_total`."""

from collections.abc import Iterable, Mapping
from typing import Any

from edge_runtime.http.model_stats import BUCKETS_S, ModelStats

TYPE = "text/plain; version=0.0.4; charset=utf-8"


class _Page:
    """Families in the order of their first sample."""

    def __init__(self) -> None:
        self._families: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> None:
        """Samples of one family; a family without any is not shown."""
        lines = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]
        if lines:
            self._families.setdefault(name, [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]).extend(lines)

    def add_histogram(self, name: str, text: str, models: Mapping[str, ModelStats]) -> None:
        """The durations of requests, by model; each bucket includes the shorter ones."""
        lines = [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
        for model, stats in models.items():
            count = 0
            for edge, number in zip((*BUCKETS_S, float("inf")), stats.buckets, strict=True):
                count += number
                labels = _labels({"model": model, "le": "+Inf" if edge == float("inf") else repr(edge)})
                lines.append(f"{name}_bucket{labels} {count}")
            labels = _labels({"model": model})
            lines += [f"{name}_sum{labels} {_number(stats.total_ns / 1e9)}", f"{name}_count{labels} {count}"]
        if models:
            self._families[name] = lines

    def text(self) -> bytes:
        """The whole page."""
        return "".join(line + "\n" for lines in self._families.values() for line in lines).encode()


def render(
    health: Mapping[str, Any],
    requests: Mapping[tuple[str, int], int],
    models: Mapping[str, ModelStats] | None = None,
    waiting: Mapping[str, int] | None = None,
) -> bytes:
    """The text.

    Args:
        health: the document of `edge/{device}/health`; `serve` has only a part of it.
        requests: the number of answers, by route and status.
        models: the statistics of requests for each model.
        waiting: the number of waiting requests for each model.
    """
    page = _Page()
    labels = {"device": str(health.get("device", "")), "runtime": str(health.get("runtime", ""))}
    page.add("edge_info", "gauge", "Which device and which release this is.", [(labels, 1)])
    for name, kind, text, key in _TOTALS:
        if key in health:
            page.add(name, kind, text, [({}, health[key])])
    _add_models(page, health.get("models", {}))
    page.add(
        "edge_source_open",
        "gauge",
        "Whether readings can come from a source.",
        [({"source": name}, float(source["open"])) for name, source in health.get("sources", {}).items()],
    )
    _add_links(page, health)
    _add_drift(page, health.get("drift", {}))
    _add_sinks(page, health.get("sinks", {}))
    for name, key, text in _REASONS:
        counts = health.get(key, {})
        page.add(name, "counter", text, [({"reason": reason}, count) for reason, count in counts.items()])
    page.add(
        "edge_http_requests_total",
        "counter",
        "Answered requests.",
        [({"route": route, "status": str(status)}, count) for (route, status), count in sorted(requests.items())],
    )
    _add_requests(page, models or {}, waiting or {})
    return page.text()


def _add_models(page: _Page, known: Mapping[str, Any]) -> None:
    """Version, predictions, latency and accuracy of each model."""
    page.add(
        "edge_model_info",
        "gauge",
        "The version of each model.",
        [({"model": name, "version": str(model.get("version", ""))}, 1) for name, model in known.items()],
    )
    page.add(
        "edge_model_predictions_total",
        "counter",
        "Predictions of a model.",
        [({"model": name}, model["predictions"]) for name, model in known.items() if "predictions" in model],
    )
    page.add(
        "edge_model_latency_seconds",
        "summary",
        "From the bytes of a reading to its payload, over the last thousand.",
        [
            ({"model": name, "quantile": {"p50": "0.5", "p99": "0.99"}.get(quantile, quantile)}, ms / 1000)
            for name, model in known.items()
            for quantile, ms in model.get("latency_ms", {}).items()
        ],
    )
    judged = {name: model["accuracy"] for name, model in known.items() if model.get("accuracy")}
    for name, kind, text, key in _ACCURACY:
        samples = [({"model": model}, found[key]) for model, found in judged.items() if found[key] is not None]
        page.add(name, kind, text, samples)


def _add_sinks(page: _Page, sinks: Mapping[str, Any]) -> None:
    """Faults and losses of each sink, by reason."""
    for name, key, text in _SINK_REASONS:
        samples = [
            ({"sink": sink, "reason": reason}, count)
            for sink, found in sinks.items()
            for reason, count in found.get(key, {}).items()
        ]
        page.add(name, "counter", text, samples)


def _add_requests(page: _Page, models: Mapping[str, ModelStats], waiting: Mapping[str, int]) -> None:
    """The requests for each model."""
    page.add(
        "edge_http_model_requests_total",
        "counter",
        "Requests to score something, by model and status.",
        [
            ({"model": name, "status": str(status)}, count)
            for name, stats in models.items()
            for status, count in sorted(stats.answered.items())
        ],
    )
    for name, text, key in _MODEL_TOTALS:
        page.add(name, "counter", text, [({"model": model}, getattr(stats, key)) for model, stats in models.items()])
    page.add_histogram("edge_http_model_request_seconds", "From the head of a request to its scores.", models)
    page.add(
        "edge_http_model_waiting",
        "gauge",
        "Requests that wait for a model.",
        [({"model": name}, count) for name, count in waiting.items()],
    )


def _add_drift(page: _Page, drift: Mapping[str, Any]) -> None:
    """The drift of readings and answers from the training."""
    states = {"ok": 0, "watch": 1, "alarm": 2}
    page.add(
        "edge_drift_state",
        "gauge",
        "Whether readings and answers look like the training: 0 ok, 1 watch, 2 alarm.",
        [({"model": name}, states[each["state"]]) for name, each in drift.items()],
    )
    channels = [
        ({"model": name, "channel": channel}, found)
        for name, each in drift.items()
        for channel, found in each["channels"].items()
    ]
    page.add(
        "edge_drift_channel_state",
        "gauge",
        "The same of one channel, of the key that is worst off.",
        [(labels, states[found["state"]]) for labels, found in channels],
    )
    for name, text, key in _DRIFT:
        known = [(labels, found[key]) for labels, found in channels if found[key] is not None]
        page.add(name, "gauge", text, known)


def _add_links(page: _Page, health: Mapping[str, Any]) -> None:
    """The brokers that have accepted the device, and the one that receives predictions."""
    page.add(
        "edge_link_connected",
        "gauge",
        "Whether a broker has accepted the device, and the link is up as far as is known.",
        [({"link": name}, float(up)) for name, up in health.get("connected", {}).items()],
    )
    broker: Mapping[str, Any] = health.get("broker", {})
    if broker:
        in_use = {"url": str(broker["url"] or "")}
        page.add("edge_broker_fallback", "gauge", "Whether a fallback serves.", [(in_use, float(broker["fallback"]))])
        changes = [({"to": each}, broker[f"{each}s"]) for each in ("failover", "return")]
        page.add("edge_broker_changes_total", "counter", "Changes to a fallback, and returns from one.", changes)


_TOTALS = (
    ("edge_uptime_seconds", "gauge", "Since the start of the process.", "uptime_s"),
    ("edge_readings_total", "counter", "Readings that arrived.", "readings"),
    ("edge_predictions_total", "counter", "Predictions that were made.", "predictions"),
    ("edge_published_total", "counter", "Predictions that the broker has acknowledged.", "published"),
    ("edge_queued", "gauge", "Predictions that wait for the broker.", "queued"),
    ("process_cpu_seconds_total", "counter", "CPU time of the process.", "cpu_s"),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the process.", "rss_bytes"),
)
_ACCURACY = (
    ("edge_model_judged", "gauge", "Predictions of the present bundle whose truth is known.", "n"),
    ("edge_model_accuracy", "gauge", "The share of these that were right.", "accuracy"),
    ("edge_model_accuracy_estimated", "gauge", "The same for the last windows, estimated without truth.", "estimated"),
)
_MODEL_TOTALS = (
    ("edge_http_model_rows_total", "Windows that requests had scored.", "rows"),
    ("edge_http_model_calls_total", "Calls of the model for requests.", "calls"),
)
_DRIFT = (
    ("edge_drift_psi", "Population stability index of a channel against the training.", "psi"),
    ("edge_drift_offset_sd", "Offset of a channel, in standard deviations of the training.", "offset_sd"),
    ("edge_drift_missing_ratio", "Share of readings without the channel.", "missing"),
    ("edge_drift_out_of_range_ratio", "Share of values out of the range of the channel.", "out_of_range"),
)
_SINK_REASONS = (
    ("edge_sink_errors_total", "errors", "Faults of a sink, by reason."),
    ("edge_sink_dropped_total", "dropped", "Predictions that are lost to a sink, by reason."),
)
_REASONS = (
    ("edge_rejected_total", "rejected", "Readings out of the contract, by reason."),
    ("edge_skipped_total", "skipped", "Readings that were known already, by reason."),
    ("edge_dropped_total", "dropped", "What was lost for want of room or time, by reason."),
    ("edge_errors_total", "errors", "Faults of the outside world, by reason."),
)


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    return repr(value)
