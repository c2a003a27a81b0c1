"""Which form of a model to ship, and why, in one sentence. Pure.

`balanced` weighs bytes, time and memory: the cost of a form is the product of its bytes (of the whole file), its time
and its memory, each relative to float32. A form replaces a simpler one where it lowers that cost by a fifth. A form
that takes more than twice float32's time is not kept, however small it is. `size` and `latency` consider one of the
three.

A difference without use on a device counts as equal: bytes within one block of a file system, a time shorter by less
than a tenth of a millisecond, memory within a megabyte. Times vary from run to run, so times within a quarter of each
other are equal too. They are measured in turns with float32, and a time at a limit counts against the form. The
sentence goes into the manifest and holds no time. Weak point: times are those of the workstation, not of the device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from converter.evaluate import Judgement
from converter.load.source import Answer
from converter.quantize import Candidate, Request
from converter.session import Speed

Prefer = Literal["balanced", "size", "latency"]
GAIN = 0.2  # the share of the cost by which a form must be better than a simpler one
SLOWEST = 2.0  # times float32's time
SAME = 1.25  # times that differ by less are equal
BLOCK_BYTES = 4096  # a file takes whole blocks of the disk
GAIN_US = 100.0
GAIN_MEMORY_BYTES = 1 << 20  # what allocators keep for themselves
MARGIN = 0.05  # run-to-run variation of a relative time that is near a limit
_SIMPLICITY = {"none": 0, "float16": 1, "int8": 2, "dynamic": 3}
_METRIC_DIGITS = 3  # smaller differences of the metric are chance


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """One form of the model with its answers to the evaluation rows, and their metric.

    Attributes:
        candidate: the model.
        answer: its answers.
        judgement: their metric and differences.
        speed: the time of one prediction.
        manifest_bytes: what the file holds beside the graph.
        slowness: its time relative to float32's, measured in turns; None where only `speed` is known.
        memory_bytes: what a fresh process takes to load and run it beyond onnxruntime itself; 0 where not measured.
    """

    candidate: Candidate
    answer: Answer
    judgement: Judgement
    speed: Speed
    manifest_bytes: int = 0
    slowness: float | None = None
    memory_bytes: int = 0

    @property
    def is_rough(self) -> bool:
        """Whether its layers are rounded, so that their errors are worth a report."""
        return self.candidate.method != "none"

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.candidate.model) + self.manifest_bytes


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The result of a search. `kept` is None where the requested form loses too much."""

    forms: tuple[Form, ...]
    kept: Form | None
    reason: str


def choose(
    forms: Sequence[Form], *, request: Request, reference: float, max_drop: float, prefer: Prefer
) -> tuple[Form | None, str]:
    """The form to ship and the reason; None where the requested form loses too much.

    Args:
        forms: float32, and what was tried.
        request: the requested form.
        reference: the source's metric.
        max_drop: how much of it a form may lose.
        prefer: the criterion among forms within `max_drop`.
    """
    base, tried = forms[0], forms[1:]
    good = [form for form in tried if reference - form.judgement.metric <= max_drop]
    if request == "none":
        return base, "float32: not quantised, as asked"
    if request != "auto":
        if not good:
            return None, _why_none(tried, request, reference, max_drop)
        best = _best(good, base, prefer)
        return best, f"{best.candidate.name}: as asked{_price(best, base)}"
    best = _best([base, *good], base, prefer)
    if best is base:
        return base, _why_float(good, base, prefer, max_drop)
    if prefer == "balanced":
        return best, f"{best.candidate.name}: {_compared(best, base)}; no simpler form gains as much"
    kind = "smallest" if prefer == "size" else "fastest"
    return best, f"{best.candidate.name}: the {kind} form within --max-drop {max_drop:g}, {_size_in_words(best, base)}"


def _best(forms: Sequence[Form], base: Form, prefer: Prefer) -> Form:
    match prefer:
        case "size":
            return min(forms, key=lambda form: form.size)
        case "latency":
            return min(forms, key=lambda form: form.speed.wall_us)
        case "balanced":
            # Float32 comes first where it is among them. A form that was requested by name may be slow.
            admitted = [form for form in forms if _slowness(form, base) <= SLOWEST] or list(forms)
            least = min(_cost(form, base) for form in admitted)
            near = [form for form in admitted if _cost(form, base) * (1.0 - GAIN) <= least]
            return min(near, key=_preference)
        case _:
            assert_never(prefer)


def _preference(form: Form) -> tuple[int, float, int]:
    """Simpler forms first, then those that keep more of the metric, then those with simpler recipes."""
    recipe = form.candidate.recipe
    effort = int(recipe.per_channel) + 2 * (recipe.calibrator != "MinMax") + 4 * len(recipe.spared)
    return _SIMPLICITY[recipe.method], -round(form.judgement.metric, _METRIC_DIGITS), effort


def _cost(form: Form, base: Form) -> float:
    near = abs(form.size - base.size) < BLOCK_BYTES
    return (1.0 if near else form.size / base.size) * _slowness(form, base) * _memory(form, base)


def _memory(form: Form, base: Form) -> float:
    """Its memory relative to float32's; 1 where it was not measured, or the difference has no use on a device."""
    if not form.memory_bytes or not base.memory_bytes:
        return 1.0
    near = abs(form.memory_bytes - base.memory_bytes) < GAIN_MEMORY_BYTES
    return 1.0 if near else form.memory_bytes / base.memory_bytes


def near_a_limit(ratio: float) -> bool:
    """Whether a relative time is so near a limit that a few percent decide."""
    return any(abs(ratio - limit) < MARGIN * limit for limit in (1.0 / SAME, SAME, SLOWEST))


def _slowness(form: Form, base: Form) -> float:
    """Its time relative to float32's; 1 where the difference is small, or has no use on a device.

    A time at a limit counts in favour of float32, so that a chosen form keeps its gain in another run.
    """
    other = max(base.speed.steady_us, 1e-9)
    one = form.speed.steady_us if form.slowness is None or form is base else form.slowness * other
    if form.slowness is not None and near_a_limit(one / other):
        one *= 1.0 + MARGIN
    if other - GAIN_US < one <= SAME * other:
        return 1.0
    return one / other if one > other or one * SAME < other else 1.0


def _size_in_words(form: Form, base: Form) -> str:
    saved = 1.0 - form.size / base.size
    return f"{saved:.0%} smaller than float32" if saved >= 0 else f"{-saved:.0%} larger than float32"


def _compared(form: Form, base: Form) -> str:
    """Bytes and time compared with float32; the time in words that are the same in each run."""
    slowness = _slowness(form, base)
    if slowness > SLOWEST:
        time = "more than twice as slow"
    elif slowness > 1.0:
        time = "less than twice as slow"
    else:
        time = "as fast" if slowness == 1.0 else "faster"
    return f"{_size_in_words(form, base)} and {time} here"


def _why_float(good: Sequence[Form], base: Form, prefer: Prefer, max_drop: float) -> str:
    if not good:
        return f"float32: no quantised form is within --max-drop {max_drop:g}"
    if prefer != "balanced":
        better = "smaller" if prefer == "size" else "faster"
        return f"float32: no quantised form is both {better} and within --max-drop {max_drop:g}"
    rival = min(good, key=lambda form: _cost(form, base))
    return (
        f"float32: no form within --max-drop {max_drop:g} is better by {GAIN:.0%} in bytes and time; "
        f"{rival.candidate.name} is {_compared(rival, base)}"
    )


def _why_none(tried: Sequence[Form], request: Request, reference: float, max_drop: float) -> str:
    if not tried:
        return f"{request}: no form could be made"
    best = max(tried, key=lambda form: form.judgement.metric)
    drop = reference - best.judgement.metric
    return f"{best.candidate.name}: the metric drops by {drop:.4f}, more than --max-drop {max_drop:g}"


def prices(forms: Sequence[Form]) -> list[str]:
    """A sentence where the best int8 form is larger or slower than float32.

    Not for the manifest: times differ from run to run, and equal inputs give equal bytes.
    """
    base = forms[0]
    lines = []
    for words, method in (("static int8", "int8"), ("dynamic int8", "dynamic")):
        tried = [form for form in forms[1:] if form.candidate.method == method]
        if not tried:
            continue
        smallest = min(form.size for form in tried)
        fastest = min(form.speed.wall_us for form in tried)
        if smallest > base.size:
            lines.append(f"{words} is larger than float32 here: {smallest:,} bytes at least, against {base.size:,}")
        if fastest > SAME * base.speed.wall_us:
            lines.append(
                f"{words} is slower than float32 on this machine: {fastest:.0f} us a prediction at best, "
                f"against {base.speed.wall_us:.0f}"
            )
    return lines


def _price(form: Form, base: Form) -> str:
    """The cost of a form that was requested by name: int8 is neither always smaller nor always faster."""
    more = form.size - base.size
    return f"; it is {more:,} bytes larger than float32, because the model is small" if more > 0 else ""
