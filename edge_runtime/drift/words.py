"""The reason why a column, a rate or a clock differs from training, as one sentence. Pure."""

from typing import assert_never

from edge_runtime.drift.baseline import Baseline
from edge_runtime.drift.column import Cause
from edge_runtime.drift.columns import Figures


def why(figures: Figures, base: Baseline, names: tuple[str, ...]) -> str | None:
    """The reason for the state of a column; None if it is ok."""
    column = figures.column
    match figures.cause:
        case None:
            return None
        case Cause.MISSING:
            return f"missing in {figures.why_missing:.0%} of the readings, in training in {base.missing[column]:.0%}"
        case Cause.STUCK:
            return f"stuck: {figures.last:.6g} in {figures.run} readings one after another"
        case Cause.SWAPPED:
            return f"looks like the training of {names[figures.other]}: the two may be swapped"
        case Cause.OUTSIDE:
            low, high = base.low[column], base.high[column]
            return f"out of the range {low:g} to {high:g} in {figures.why_outside:.0%} of the readings"
        case Cause.OFFSET:
            way = "above" if figures.rises else "below"
            off = "" if figures.offset_sd is None else f": {figures.offset_sd:+.2g} standard deviations of late"
            return f"{way} its mean in training ({base.mean[column]:.4g}){off}"
        case Cause.SHAPE:
            spread = "" if figures.spread is None else f", spread {figures.spread:.2g} times as wide"
            return f"distributed otherwise than in training: PSI {figures.psi or 0.0:.2g}{spread}"
        case Cause.STEP:
            more = "more" if figures.moves_more else "less"
            return f"moves {more} from one reading to the next than in training"
        case Cause.BESIDE:
            more = "more" if figures.moves_more_beside else "less"
            return f"moves {more} beside the other channels than in training"
        case _:
            assert_never(figures.cause)


def cause_of(figures: Figures) -> str | None:
    """The kind of the reason, the same on every device; None if the column is ok."""
    match figures.cause:
        case None:
            return None
        case Cause.OFFSET:
            return "above" if figures.rises else "below"
        case Cause.STEP:
            return "moves more" if figures.moves_more else "moves less"
        case Cause.BESIDE:
            return "moves more than the others" if figures.moves_more_beside else "moves less than the others"
        case Cause.OUTSIDE:
            return "out of range"
        case Cause.MISSING | Cause.STUCK | Cause.SWAPPED | Cause.SHAPE:
            return figures.cause.name.lower()
        case _:
            assert_never(figures.cause)


def why_rate(found: float, interval: float) -> str:
    """Both rates in Hz."""
    return f"readings come at {1.0 / found:.3g} Hz, in training at {1.0 / interval:.3g} Hz"


def why_clock(offset: float) -> str:
    """The direction and size of the clock's offset."""
    way = "behind" if offset > 0.0 else "ahead of"
    return f"the times of the readings are {abs(offset):.3g} s {way} the clock of this device"
