"""One source with the models that it feeds: each batch of the source goes to each model's pipeline.

Guarantee: a batch reaches every model of its source; a bug in one of them sets its readings aside, counted, and does
not affect the others.
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
    """A source's table, the columns that it delivers, and the requirements of its models.

    Attributes:
        config: the table.
        channels: the columns.
        shape: of a source of whole frames.
        max_gap: the shortest gap that a model watches.
        holds_windows: whether a model acknowledges by windows.
        categories: the texts of channels that hold text.
        units: the bundles' units of the channels, if the source needs them.
    """

    config: SourceKindTable
    channels: tuple[str, ...]
    shape: tuple[int, ...] | None
    max_gap: float | None
    holds_windows: bool = False
    categories: Categories = NO_CATEGORIES
    units: Units = NO_UNITS


class Feed:
    """A source and its pipelines; a reload may exchange either, while the other continues.

    Args:
        planned: the source's table and the columns that it delivers.
        counters: of the source.

    Attributes:
        source: set by its maker, which makes it deliver to this feed.
        pipelines: the models, in the order of the file.
        watch: gets each batch first, for the status page; None without one.
        is_started: whether the source has started.
    """

    source: AnySource

    def __init__(self, planned: PlannedSource, counters: Counters) -> None:
        self.plan(planned)
        self.counters = counters
        self.pipelines: list[Pipeline] = []
        self.watch: Callable[[Batch, tuple[str, ...]], None] | None = None
        self.is_started = False

    def plan(self, planned: PlannedSource) -> None:
        """Apply a plan; its loaded models are not kept, since bundles are exchanged."""
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
        """Give the readings of one wake-up to every model."""
        if self.watch is not None:
            self.watch(batch, self.planned.channels)
        for pipeline in self.pipelines:
            try:
                pipeline.accept(batch)
            except Exception:  # noqa: BLE001 - a bug: set aside, or their broker sends them again and again
                self.counters.errors["crashed"] += 1
                _log.exception("readings are set aside", extra=fields(source=self.name, readings=len(batch)))

    def needed(self) -> int:
        """The least number of readings until one may complete a window of a model, that one included."""
        return min((pipeline.needed for pipeline in self.pipelines), default=1)

    @property
    def has_room(self) -> bool:
        """Whether every model can take more."""
        return all(pipeline.has_room for pipeline in self.pipelines)

    def interrupt(self) -> None:
        """Treat this moment as a gap, because readings may be missing: no window spans it."""
        for pipeline in self.pipelines:
            pipeline.interrupt()


def pipelines_of(feeds: list[Feed]) -> Iterator[Pipeline]:
    """Every model at work, in the order of the sources."""
    for feed in feeds:
        yield from feed.pipelines
