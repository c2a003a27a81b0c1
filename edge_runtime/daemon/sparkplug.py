"""The edge node of Sparkplug of a daemon: its connection, its devices, and its changes at a reload.

Imported only if the device file has `[sparkplug]`, or had it before a reload. It has its own connection, since MQTT
allows one last will per connection, and that of the upstream is `offline`. Its client id is that of the upstream with
the suffix `-sparkplug`. Weak point: of several brokers it uses only the preferred one.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.config.load import upstream_broker
from edge_runtime.config.tables import BrokerTable, Config, ModelTable
from edge_runtime.daemon.links import Links
from edge_runtime.sparkplug.node import EdgeNode, NodeTap
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop

_log = get_logger("sparkplug")


class Sparkplug:
    """The edge node, if the configuration has one.

    Args:
        loop: the event loop.
        counters: by part; the part of the node is `sparkplug`.
    """

    def __init__(self, loop: Loop, counters: Mapping[str, Counters]) -> None:
        self._loop = loop
        self._counters = counters
        self._made_of: tuple[str, str, BrokerTable] | None = None
        self._links: Links | None = None
        self._node: EdgeNode | None = None
        self._taps: dict[str, tuple[ModelTable, NodeTap]] = {}

    def fit(self, config: Config) -> None:
        """Apply a configuration: keep the node, replace it, or end it."""
        wanted = None if config.sparkplug is None else (config.sparkplug.group, config.device.id, _broker(config))
        if wanted != self._made_of:
            self.stop()
        self._made_of = wanted
        if wanted is None or self._node is not None:
            return
        group, device, broker = wanted
        counters = self._counters["sparkplug"]
        self._node = EdgeNode(group, device, self._loop, counters)
        self._links = Links(
            self._loop,
            lambda _: counters,
            commit_interval=config.outbox.commit_interval,
            on_change=lambda: None,
            keeps_session=False,
        )
        self._node.attach(self._links.get(broker, "sparkplug", self._node.will))
        self._links.start()

    def keep(self, models: list[ModelTable]) -> None:
        """Set the models that have devices."""
        names = {model.name for model in models}
        for name in [name for name in self._taps if name not in names]:
            del self._taps[name]
            if self._node is not None:
                self._node.forget_model(name)

    def tap(self, table: ModelTable, manifest: Manifest, facts: Callable[[Manifest], dict[str, Any]]) -> NodeTap | None:
        """The tap that delivers a model's predictions to the node; None if there is none."""
        if self._node is None:
            return None
        if manifest.task in ("tensor", "embedding"):
            _log.warning("a model has no metrics in Sparkplug", extra=fields(model=table.name, task=manifest.task))
            return None
        known = self._taps.get(table.name)
        if known is None or known[0] != table:
            known = self._taps[table.name] = table, NodeTap(self._node, table, facts)
        return known[1]

    @property
    def state(self) -> str | None:
        """The state, one line for people; None if there is no node."""
        return None if self._node is None else self._node.state

    def stop(self) -> None:
        """End the node, with a death message."""
        if self._node is not None:
            self._node.end()
        if self._links is not None:
            self._links.keep(())
        self._node, self._links = None, None
        self._taps.clear()


def _broker(config: Config) -> BrokerTable:
    broker = upstream_broker(config)
    return msgspec.structs.replace(broker, urls=(), client_id=f"{broker.client_id}-sparkplug")
