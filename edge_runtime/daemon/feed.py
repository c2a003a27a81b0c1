"""One source with the models that it feeds: each batch of the source goes to each model's pipeline.

Guarantee: a batch reaches every model of its source; a fault of ours in one of them sets its readings aside, counted,
and the others have them all the same.
"""

from collections.abc import Callable, Iterator

import msgspec

from edge_runtime.daemon.plan import PlannedSource
from edge_runtime.readings import Batch
from edge_runtime.stream.codecs import NO_CATEGORIES, NO_UNITS, Categories, Units
from edge_runtime.stream.pipeline import Pipeline
from edge_runtime.stream.sources.kind import AnySource, SourceKindTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger

_log = get_logger("daemon")


class FeedPlan(msgspec.Struct, frozen=True):
    """A source's table, the columns that it delivers, and what its models want of it.

    Attributes:
        config: the table.
        channels: the columns.
        shape: of a source of whole frames.
        max_gap: the shortest gap that a model watches.
        holds_windows: a model acknowledges by windows.
        categories: the texts of channels that hold text.
        units: what the bundles measure the channels in, where the source has to know.
    """

    config: SourceKindTable
    channels: tuple[str, ...]
    shape: tuple[int, ...] | None
    max_gap: float | None
    holds_windows: bool = False
    categories: Categories = NO_CATEGORIES
    units: Units = NO_UNITS


class Feed:
    """A source and its pipelines; a reload may exchange either, while the other goes on.

    Args:
        planned: the source's table and the columns that it delivers.
        counters: of the source.

    Attributes:
        source: set by its maker, which makes it deliver to this feed.
        pipelines: the models, in the order of the file.
        watch: sees each batch first, for the status page; None without one.
        is_started: the source is at work.
    """

    source: AnySource

    def __init__(self, planned: PlannedSource, counters: Counters) -> None:
        self.plan(planned)
        self.counters = counters
        self.pipelines: list[Pipeline] = []
        self.watch: Callable[[Batch, tuple[str, ...]], None] | None = None
        self.is_started = False

    def plan(self, planned: PlannedSource) -> None:
        """Deliver what this plan wants; the plan's loaded models are not kept, since bundles are exchanged."""
        holds_windows = any(each.config.acknowledge == "window" for each in planned.models)
        self.planned = FeedPlan(
            planned.config,
            planned.channels,
            planned.shape,
            planned.max_gap,
            holds_windows,
            planned.categories,
            planned.units,
        )

    @property
    def name(self) -> str:
        """The source's."""
        return self.planned.config.name

    def accept(self, batch: Batch) -> None:
        """Hand the readings of one wake-up to every model."""
        if self.watch is not None:
            self.watch(batch, self.planned.channels)
        for pipeline in self.pipelines:
            try:
                pipeline.accept(batch)
            except Exception:  # noqa: BLE001 - a fault of ours: set aside, or their broker sends them for ever
                self.counters.errors["crashed"] += 1
                _log.exception("readings are set aside", extra=fields(source=self.name, readings=len(batch)))

    def needed(self) -> int:
        """How many readings can come before one may complete a window of some model, that one included."""
        return min((pipeline.needed for pipeline in self.pipelines), default=1)

    @property
    def has_room(self) -> bool:
        """Every model can take more."""
        return all(pipeline.has_room for pipeline in self.pipelines)

    def interrupt(self) -> None:
        """Readings may be missing from here on: no window may hold some from before and some from after."""
        for pipeline in self.pipelines:
            pipeline.interrupt()


def pipelines_of(feeds: list[Feed]) -> Iterator[Pipeline]:
    """Every model at work, in the order of the sources."""
    for feed in feeds:
        yield from feed.pipelines
