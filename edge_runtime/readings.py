"""The values that flow down the path: `Batch` (readings), `Prediction`, and the `Receipt` that ties them together.

Everything that one wake-up of the loop brought from one source travels as one `Batch`, so that a loaded
device pays its costs per wake-up and not per reading.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MOST_HEIRS = 64  # of one receipt, and those of the present link beyond them
NOTHING: Callable[[], object] = lambda: None  # noqa: E731 - the acknowledgement of a receipt that owes none


class Receipt(msgspec.Struct, eq=False):
    """What we owe a broker for one QoS 1 message: an acknowledgement, once every reader of it is done.

    A message is read by every model of its source; each takes one hold when it accepts the reading and
    releases it when the reading's prediction is safe. The acknowledgement is sent when the last hold is
    released. A receipt of a connection that is gone acknowledges nothing: its broker sends again.

    Attributes:
        acknowledge: called when the last hold is released.
        number: what its maker knows it by.
        holds: how many there are; the first is the source's own, until the batch has been handed to every model.
        heirs: receipts of the same message, which its broker sent again meanwhile.
        mark: what a source knows its message by; 0 before one has looked at it.
        link: the number of the connection that brought the message.
    """

    acknowledge: Callable[[], object]
    number: int = 0
    holds: int = 1
    heirs: list["Receipt"] | None = None
    mark: int = 0
    link: int = 0

    @property
    def is_released(self) -> bool:
        """No stage holds it any more."""
        return self.holds == 0

    def hold(self) -> None:
        """Put the acknowledgement off until one more `release`."""
        self.holds += 1

    def release(self) -> None:
        """Give one hold back; the last one acknowledges."""
        self.holds -= 1
        if self.holds == 0:
            self.acknowledge()
            if self.heirs is not None:
                for heir in self.heirs:
                    heir.release()

    def pass_on(self, heir: "Receipt") -> None:
        """Hold another receipt of the same message until this one is released."""
        if self.heirs is None:
            self.heirs = []
        if not self.heirs or self.heirs[-1] is not heir:
            heir.hold()
            if len(self.heirs) >= MOST_HEIRS:  # of links that are gone: they acknowledge nothing
                self.heirs = [each for each in self.heirs if each.link == heir.link or each.heirs]
            self.heirs.append(heir)


class Batch(msgspec.Struct, eq=False):
    """Readings of one source in the order of their arrival; every list has one item a reading.

    Attributes:
        source: the name of the source.
        values: `[n, channels]` float32 in the source's channel order; a missing channel is NaN here.
            For a source of frames `[n, *shape]`.
        keys: the stream that each reading belongs to; None where the source has a single stream.
        times: seconds since the Unix epoch: the reading's own time, else its arrival.
        identities: the reading's own `id`, `seq` or `time`, as text; None where it brought none.
        receipts: what is owed to the broker; None for sources that cannot be asked again.
        arrived: `time.perf_counter()` when the bytes were read, for the latency figures.
        refuse: to be called where a model refuses readings, before it returns: the last of them, the reason, what was
            expected and found, and how many; None where its source reports nothing.
        own_times: every reading brought its own time, so that a jump of it is a gap in the measurement.
    """

    source: str
    values: Floats
    keys: list[str | None]
    times: list[float]
    identities: list[str | None]
    receipts: list[Receipt | None]
    arrived: float = 0.0
    own_times: bool = False
    refuse: Callable[[int, str, str, int], None] | None = None

    def __len__(self) -> int:
        return len(self.keys)


class Prediction(msgspec.Struct, eq=False):
    """What one model says about one window, before it is encoded.

    `label` and `scores` (in the order of the manifest's labels) for a classification, `values` (in the order of its
    targets) for a regression, `score` and `anomaly` for an anomaly, `tensors` for tensor, embedding, detection and
    multilabel.
    `label_set` and `interval` (the low and the high ends) are there where the bundle says how sure it is.
    `score` of a classification is the score of its label. `alarm` is the verdict of `decide.py`, which sets the outbox
    priority as well; `can_alarm` where the model can raise one at all.
    """

    key: str | None
    time: float
    seq: int
    identity: str | None
    label: str | None = None
    score: float | None = None
    scores: Floats | None = None
    values: Floats | None = None
    anomaly: bool | None = None
    tensors: dict[str, NDArray[Any]] | None = None
    label_set: tuple[str, ...] | None = None
    interval: tuple[Floats, Floats] | None = None
    alarm: bool = False
    can_alarm: bool = False
    receipt: Receipt | None = None
    arrived: float = 0.0


class Carry:
    """What a recurrent model carries from one window of a stream to the next; None stands for the zero state.

    A gap gives the stream a new one, so that a window still being computed cannot write into the time after it.
    """

    __slots__ = ("parts",)

    def __init__(self) -> None:
        self.parts: Sequence[Floats] | None = None
