"""Every check of `edge-runtime doctor`, in the order in which a person would look."""

from collections.abc import Iterator
from pathlib import Path

from edge_runtime.bringup.broker_checks import check_broker
from edge_runtime.bringup.finding import Finding, findings
from edge_runtime.bringup.machine_checks import (
    check_card,
    check_clock,
    check_disk,
    check_memory,
    check_onnxruntime,
    check_processor,
)
from edge_runtime.bringup.port_checks import BY_ID, check_port
from edge_runtime.bringup.service_checks import check_bundles, check_store, check_unit, read_device
from edge_runtime.config.load import upstream_broker
from edge_runtime.config.tables import BrokerTable, Config
from edge_runtime.config.topics import split_share
from edge_runtime.daemon.state import state_folder
from edge_runtime.stream.sources.kind import as_kind

_STATE = Path("/var/lib/edge-runtime")


def diagnose(device: Path | None) -> Iterator[Finding]:
    """What is found, one after the other; only the machine where no device file is named."""
    yield from findings("system", check_processor)
    yield from findings("memory", check_memory)
    yield from findings("clock", check_clock)
    yield from findings("card", check_card)
    yield from findings("onnxruntime", check_onnxruntime)
    if device is None:
        yield from findings("disk", lambda: check_disk(_STATE, "the state"))
        yield from findings("ports", _ports)
        return
    config, found = read_device(device)
    yield from found
    if config is None:
        return
    yield from findings("disk", lambda: check_disk(state_folder(config) or _STATE, "the outbox"))
    yield from findings("models", lambda: check_bundles(config))
    yield from findings("model store", lambda: check_store(config))
    for source in config.source:
        for port in [getattr(source, "port", None)]:
            if isinstance(port, str):
                yield from findings(f"port {port}", lambda port=port: check_port(port))  # type: ignore[misc]
    for broker, filters in _brokers(config).items():
        for url in (broker.url, *broker.urls):
            yield from findings(f"broker {url}", lambda b=broker, u=url, f=filters: check_broker(b, u, f))  # type: ignore[misc]
    yield from findings("service", lambda: check_unit(config, device))


def _ports() -> Iterator[Finding]:
    found = sorted(BY_ID.iterdir()) if BY_ID.is_dir() else []
    if not found:
        yield Finding("ports", "ok", f"no USB serial port in {BY_ID}")
    for each in found:
        yield from check_port(str(each))


def _brokers(config: Config) -> dict[BrokerTable, list[str]]:
    """Every broker with the filters that are read from it."""
    found: dict[BrokerTable, list[str]] = {upstream_broker(config): []}
    for source in config.source:
        for broker in as_kind(source).links(config):
            _, topics = source.subscriptions(config)
            filters = found.setdefault(broker, [])
            filters += [split_share(each)[1] for each in topics.values() if split_share(each)[1] not in filters]
    return found
