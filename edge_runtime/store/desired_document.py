"""The signed document that names a device's bundle, and the device's report: the two topics of a rollout.

`edge/{device}/desired` (retained) holds `Envelope`: the text of a `Desired` and its signatures, in the namespace
`edge-desired`. `edge/{device}/rollout` (retained) holds a `Report`. Both ends read these definitions. Pure.

Guarantee: a digest has the form of one (it names a file), and numbers are in the range of dates and file sizes, whoever
signed them.
"""

import re
from typing import Annotated, Literal

import msgspec

from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.release import Digest, Moment, Serial

DESIRED_NAMESPACE = "edge-desired"
MOST_BYTES = 64 * 1024
TAKEN_BACK = "taken back before it began"  # the reason in the report on a document that `rollout abort` has cleared

_TIME_OF_DAY = re.compile("(?:[01][0-9]|2[0-3]):[0-5][0-9]")

ReportState = Literal["pending", "receiving", "probation", "confirmed", "failed"]
FINAL: frozenset[str] = frozenset({"confirmed", "failed"})


class Desired(msgspec.Struct, frozen=True, kw_only=True, tag="desired"):
    """One device's bundle of one model. Unknown members are ignored.

    Attributes:
        device: the id of the device; others ignore it.
        rollout: the rollout's id.
        serial: rises with every document for this device; an older one is ignored.
        model: the model's name.
        version: of the bundle.
        digest: its SHA-256, in hex; the file is fetched by it.
        size: in bytes.
        device_class: the required device class; None for any.
        not_before: seconds since 1970.
        expires: seconds since 1970, after which it is no longer begun.
        window: from and to, `HH:MM` in UTC: when the device may change its model.
        files: the files beside the bundle, by suffix: `.sig`, `.release`, `.release.sig` and so on.
        url: the address of the file by HTTP or HTTPS; if None, or if that fails, a depot sends it.
    """

    device: str
    rollout: str
    serial: Serial
    model: str
    version: str
    digest: Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=DEFAULT_LIMITS.max_bytes)]
    device_class: str | None = msgspec.field(default=None, name="class")
    not_before: Moment | None = None
    expires: Moment | None = None
    window: tuple[str, str] | None = None
    files: dict[str, str] = {}
    url: str | None = None


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """A document as the text that was signed."""

    document: str
    signature: str
    signature2: str = ""

    @property
    def signatures(self) -> list[str]:
        """The signatures that are present."""
        return [each for each in (self.signature, self.signature2) if each]


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """A device's report on its document; `before` is version and digest of the bundle that ran when it arrived."""

    rollout: str
    serial: int
    state: ReportState
    model: str
    version: str
    digest: str
    why: str | None = None
    received: int = 0
    size: int = 0
    before: dict[str, str] | None = None

    @property
    def is_final(self) -> bool:
        """Whether the state is final."""
        return self.state in FINAL


def report(
    desired: Desired,
    state: ReportState,
    why: str | None = None,
    *,
    received: int = 0,
    before: dict[str, str] | None = None,
) -> Report:
    """A report of a document."""
    return Report(
        rollout=desired.rollout,
        serial=desired.serial,
        state=state,
        model=desired.model,
        version=desired.version,
        digest=desired.digest,
        why=why,
        received=received,
        size=desired.size,
        before=before,
    )


def is_open(window: tuple[str, str] | None, minute_of_day: int) -> bool:
    """Whether a maintenance window includes this minute of the day; one that ends before it begins spans midnight."""
    if window is None:
        return True
    begin, end = (_minute(text) for text in window)
    if begin <= end:
        return begin <= minute_of_day < end
    return minute_of_day >= begin or minute_of_day < end


def _minute(text: str) -> int:
    """`HH:MM` as minutes.

    Raises:
        ValueError: it is none.
    """
    if _TIME_OF_DAY.fullmatch(text) is None:  # `int` alone would take "+9:00", "12:0 " and "1_2:5"
        raise ValueError(f"expected HH:MM, found {text[:16]!r}")
    return int(text[:2]) * 60 + int(text[3:])


def check_window(window: tuple[str, str] | None) -> None:
    """Make sure that both ends are times of day.

    Raises:
        ValueError: one is none.
    """
    for text in window or ():
        _minute(text)
