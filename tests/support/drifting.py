"""Readings of two channels, and a bundle's reference of them with limits, for tests of drift."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from converter.reference import reference_of
from edge_runtime.bundle.manifest import ChannelReference, DriftLimits, DriftReference, Manifest, Window
from edge_runtime.readings import Floats
from tests.support import builders

BLOCK = 64
RATE_HZ = 1.0


def readings(rng: np.random.Generator, count: int) -> Floats:
    """A temperature around 20 and a pressure around 1000, each reading by itself."""
    return rng.normal((20.0, 1000.0), (1.0, 8.0), (count, 2)).astype(np.float32)


def limits(values: Floats) -> DriftLimits:
    """Limits for readings that do not depend on one another."""
    return DriftLimits(
        mean=float(values.mean()),
        sd=float(values.std()) / BLOCK**0.5,
        step=float(np.log(np.abs(np.diff(values)).mean())),
        step_sd=0.12,
        slack=0.5,
        limit=12.0,
        step_slack=0.5,
        step_limit=12.0,
        psi=0.2,
    )


def references(values: Floats, names: Sequence[str], *, calibrated: bool = True) -> tuple[ChannelReference, ...]:
    """The reference of some channels, with limits or as an older converter wrote it."""
    found = reference_of(values, names)
    if not calibrated:
        return found
    return tuple(
        msgspec.structs.replace(each, run=4, limits=limits(values[:, column])) for column, each in enumerate(found)
    )


def draft(values: Floats, names: Sequence[str] = ("temperature", "pressure"), **options: Any) -> builders.Draft:
    """A bundle that takes each reading by itself, and knows what training looked like."""
    made = builders.classification(channels=names, length=1)
    for channel, span in zip(made.manifest["input"]["channels"], ((-40.0, 85.0), (0.0, 1200.0)), strict=False):
        channel["range"] = span
    made.manifest["reference"] = msgspec.to_builtins(references(values, names, **options))
    about = DriftReference(block=BLOCK, score_block=BLOCK, rate_hz=RATE_HZ)
    if options.get("calibrated", True):
        made.manifest["drift"] = msgspec.to_builtins(about)
    return made


def manifest(values: Floats, names: Sequence[str] = ("temperature", "pressure"), **options: Any) -> Manifest:
    """That of such a bundle."""
    return msgspec.convert(draft(values, names, **options).manifest, Manifest, strict=False)


def with_scores(made: Manifest, answers: Floats, names: Sequence[str]) -> Manifest:
    """With a reference of the answers too."""
    return msgspec.structs.replace(made, score_reference=references(answers, names))


def with_rate(made: Manifest, rate_hz: float) -> Manifest:
    """The same bundle, of a stream with so many readings a second."""
    assert made.drift is not None
    return msgspec.structs.replace(made, drift=msgspec.structs.replace(made.drift, rate_hz=rate_hz))


def with_reference(made: Manifest, reference: tuple[ChannelReference, ...]) -> Manifest:
    """With another reference of the channels."""
    return msgspec.structs.replace(made, reference=reference)


def without_reference(made: Manifest) -> Manifest:
    """As a bundle that was made without data."""
    return msgspec.structs.replace(made, reference=(), drift=None)


def with_block(made: Manifest, block: int) -> Manifest:
    """With blocks of another length."""
    assert made.drift is not None
    return msgspec.structs.replace(made, drift=msgspec.structs.replace(made.drift, block=block))


def with_window(made: Manifest, window: Window) -> Manifest:
    """With another window."""
    return msgspec.structs.replace(made, input=msgspec.structs.replace(made.input, window=window))


def first_channels(made: Manifest, count: int) -> Manifest:
    """With fewer channels."""
    return msgspec.structs.replace(
        made,
        input=msgspec.structs.replace(made.input, channels=made.input.channels[:count]),
        reference=made.reference[:count],
    )
