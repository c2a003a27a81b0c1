"""The frames of one wake-up of a port or a program -> one batch: decode, drop repeats, deliver.

Guarantee: if a decoder crashes, its frames are dropped, counted and logged, and the next ones are read. A reading
without a time of its own gets the wall clock time at which its frame was read. There are no receipts, since no such
source can send a reading again.
"""

import logging
from collections.abc import Callable

from edge_runtime.readings import Batch, Receipt
from edge_runtime.stream.codecs import Decoder
from edge_runtime.stream.rejections import Rejections
from edge_runtime.stream.seen import Seen, log_first
from edge_runtime.stream.sources.kind import FramedSourceTable
from edge_runtime.stream.sources.silence import SilenceWatch
from edge_runtime.system import log
from edge_runtime.system.counters import Counters


class FrameIntake:
    """Delivers the frames of one source.

    Args:
        config: its table.
        where: the origin of the frames for messages: the port or the program.
        decoder: of its frames.
        counters: `readings`, and rejections and crashes by reason.
        silence: is notified of each batch.
        sink: takes the batches.
        logger: of the kind of source.

    Attributes:
        decoder: may be replaced between two wake-ups.
    """

    def __init__(
        self,
        config: FramedSourceTable,
        where: str,
        decoder: Decoder,
        *,
        counters: Counters,
        silence: SilenceWatch,
        sink: Callable[[Batch], None],
        logger: logging.Logger,
    ) -> None:
        self.decoder = decoder
        self._source = config.name
        self._where = where
        self._counters = counters
        self._silence = silence
        self._sink = sink
        self._logger = logger
        self._seen = Seen(
            counters, late=config.late, late_tolerance=config.late_tolerance, notice=log_first(config.name)
        )
        self._rejections = Rejections(config.name, counters)

    def report_framing(self) -> None:
        """Report the refusals of the framing, for which there is no frame."""
        if self._counters.notes:
            self._rejections.report((), self._place)

    def deliver(self, frames: list[bytes], arrived: float, now: float) -> None:
        """Deliver the readings of some frames.

        Args:
            frames: at least one.
            arrived: `time.perf_counter()` when they were read.
            now: Unix seconds at that moment.
        """
        try:
            decoded = self.decoder.decode(frames, self._counters)
        except Exception:
            self._counters.errors["crashed"] += 1
            self._logger.exception("frames are set aside", extra=log.fields(source=self._source, frames=len(frames)))
            return
        if self._counters.notes:
            self._rejections.report(frames, self._place)
        going = self._seen.admit(decoded, decoded.keys) if len(decoded) else None
        if going is not None:
            decoded = decoded.chosen(going)
        count, rows = len(decoded), decoded.rows
        if not count:
            return
        self._counters.counts["readings"] += count
        self._silence.heard()
        nothing_owed: list[Receipt | None] = [None] * count

        def refuse(row: int, reason: str, why: str, number: int) -> None:
            self._rejections.refuse(reason, why, where=self._where, frame=frames[rows[row]], count=number)

        self._sink(
            Batch(
                self._source,
                decoded.values,
                decoded.keys,
                [now if own is None else own for own in decoded.times],
                decoded.identities,
                nothing_owed,
                arrived,
                own_times=None not in decoded.times,
                refuse=refuse,
            )
        )

    def _place(self, _frame: int) -> str:
        return self._where
