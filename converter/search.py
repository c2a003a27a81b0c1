"""The search for the form to ship: every recipe is made and judged, and the best that keeps the metric is kept.

"Best" is the smallest file or the shortest time, as asked. A form over the limit is never kept; where no form but
float32 keeps the metric, or none is better than it, the model stays float32 and the reason is said in words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import onnx

from converter.evaluate import Judgement, Truth, judge
from converter.layers import Layer, layer_errors
from converter.load.source import Answer
from converter.probe import Probes
from converter.quantize import Candidate, Recipe, Request, candidate, products_of, sparing, stages
from converter.session import CHUNK, Speed, run, session_of, speed_of, start_of
from edge_runtime.bundle.manifest import State, Task
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

Prefer = Literal["size", "latency"]
_SLOWER = 1.25  # times below differ from run to run by less
_FINEST = Recipe("int8", per_channel=True)


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """One form of the model, tried: its answers on the evaluation rows, and what they are worth."""

    candidate: Candidate
    answer: Answer
    judgement: Judgement
    speed: Speed

    @property
    def is_rough(self) -> bool:
        """Whether its layers are rounded, so that there is something to look for in them."""
        return self.candidate.method != "none"

    @property
    def size(self) -> int:
        """Bytes, without the manifest."""
        return len(self.candidate.model)


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The end of a search. `kept` is None where the form that was asked for loses too much."""

    forms: tuple[Form, ...]
    kept: Form | None
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What every form is tried with.

    Attributes:
        calibration: rows that show ranges.
        evaluation: rows that judge, none of them among the others.
        expected: the source's answers on them.
        truth: what is right.
        task: of the model.
        threshold: of an anomaly.
        states: of a recurrent model.
        batch_free: whether rows may be asked together.
        say: where progress goes.
        probes: rows beyond the data, on which a form must answer numbers where the source does.
        channels: their names, for messages.
    """

    calibration: Floats
    evaluation: Floats
    expected: Answer
    truth: Truth
    task: Task
    threshold: float | None
    states: tuple[State, ...]
    batch_free: bool
    say: Callable[[str], None]
    probes: Probes | None = None
    channels: tuple[str, ...] = ()

    def try_form(self, form: Candidate) -> Form:
        """Run a form on the evaluation rows.

        Raises:
            CommandError: onnxruntime cannot run it, or it answers NaN or infinity to what a sensor may send.
        """
        start = start_of(self.states)
        # Dynamic int8 takes one scale for all rows of a call, so its answers depend on the company that a row is in;
        # devices therefore ask row by row, and so do we.
        together = self.batch_free and form.method != "dynamic"
        try:
            session = session_of(form.model)
            answer = run(session, self.evaluation, CHUNK if together else 1, start)
            speed = speed_of(session, self.evaluation[:1], start)
        except Exception as error:
            text = str(error).splitlines()[0]
            raise CommandError(f"{form.name}: onnxruntime cannot run it: {text}") from error
        point = self.probes.not_finite(form.model, self.states, CHUNK if together else 1) if self.probes else None
        if point is not None:
            raise CommandError(f"{form.name}: its answer is NaN or infinite with {point.in_words(self.channels)}")
        return Form(form, answer, judge(answer, self.expected, self.truth, self.task, self.threshold), speed)

    def layers(self, base: Candidate, form: Candidate) -> tuple[Layer, ...]:
        """How far each layer of a form is from the float graph's, on the evaluation rows."""
        exact, found = (onnx.load_model_from_string(each.readable) for each in (base, form))
        together = self.batch_free and form.method != "dynamic"
        return layer_errors(exact, found, self.evaluation, self.states, together=together)

    def reference(self) -> Judgement:
        """The source, judged by the same rows."""
        return judge(self.expected, self.expected, self.truth, self.task, self.threshold)


def search(
    model: onnx.ModelProto, base: Form, bench: Bench, request: Request, max_drop: float, prefer: Prefer
) -> Found:
    """Try what was asked for, and choose.

    Args:
        model: the float32 model in normal form.
        base: that model, tried.
        bench: what to try with.
        request: which forms.
        max_drop: how much of the metric a form may lose.
        prefer: what is better among those that keep it.
    """
    forms = [base]
    reference = bench.reference().metric
    for recipe in _recipes(model, bench, request, forms, lambda: _settled(forms, request, reference, max_drop)):
        bench.say(f"trying {recipe.name}")
        try:
            forms.append(bench.try_form(candidate(model, recipe, bench.calibration, bench.states)))
        except CommandError as error:
            bench.say(f"left out: {error}")
    kept, reason = _choose(forms, request, reference, max_drop, prefer)
    return Found(tuple(forms), kept, reason)


def _recipes(
    model: onnx.ModelProto, bench: Bench, request: Request, forms: Sequence[Form], settled: Callable[[], bool]
) -> Iterator[Recipe]:
    """The recipes one by one; a later stage only while nothing of the earlier ones will do."""
    if not products_of(model):
        return
    for stage in stages(request):
        yield from stage
        if settled():
            return
    if request in ("auto", "int8"):
        bench.say("looking for the nodes that int8 hurts most")
        # Of those that do as well, per channel without a calibrator of histograms: the finest, and the soonest made.
        static = [form for form in forms if form.candidate.method == "int8"]
        best = max(static, key=lambda form: (form.judgement.metric, form.candidate.recipe == _FINEST), default=None)
        like = best.candidate.recipe if best else _FINEST
        for recipe in sparing(model, bench.calibration, bench.states, like):
            yield recipe
            if settled():
                return


def _settled(forms: Sequence[Form], request: Request, reference: float, max_drop: float) -> bool:
    wanted = "int8" if request == "auto" else request
    return any(form.candidate.method == wanted and reference - form.judgement.metric <= max_drop for form in forms)


def _choose(
    forms: Sequence[Form], request: Request, reference: float, max_drop: float, prefer: Prefer
) -> tuple[Form | None, str]:
    base, tried = forms[0], forms[1:]
    good = [form for form in tried if reference - form.judgement.metric <= max_drop]
    if request == "none":
        return base, "float32: not quantised, as asked"
    if request != "auto":
        if not good:
            if not tried:
                return None, f"{request}: no form could be made"
            best = max(tried, key=lambda form: form.judgement.metric)
            drop = reference - best.judgement.metric
            return None, f"{best.candidate.name}: the metric drops by {drop:.4f}, more than --max-drop {max_drop:g}"
        best = min(good, key=lambda form: _cost(form, prefer))
        return best, f"{best.candidate.name}: as asked{_price(best, base)}"
    best = min([base, *good], key=lambda form: _cost(form, prefer))
    if best is base:
        better = "smaller" if prefer == "size" else "faster"
        return base, f"float32: no quantised form is both {better} and within --max-drop {max_drop:g}"
    saved = 1.0 - best.size / base.size
    kind = "smallest" if prefer == "size" else "fastest"
    change = f"{saved:.0%} smaller than float32" if saved > 0 else f"{-saved:.0%} larger than float32"
    return best, f"{best.candidate.name}: the {kind} form within --max-drop {max_drop:g}, {change}"


def prices(forms: Sequence[Form]) -> list[str]:
    """Where the cheapest form of int8 is larger or slower than float32, in words; both happen, and are not hidden.

    Not for the manifest: times differ from run to run, and equal inputs give equal bytes.
    """
    base = forms[0]
    told = []
    for words, method in (("static int8", "int8"), ("dynamic int8", "dynamic")):
        tried = [form for form in forms[1:] if form.candidate.method == method]
        if not tried:
            continue
        smallest = min(form.size for form in tried)
        fastest = min(form.speed.wall_us for form in tried)
        if smallest > base.size:
            told.append(f"{words} is larger than float32 here: {smallest:,} bytes at least, against {base.size:,}")
        if fastest > _SLOWER * base.speed.wall_us:
            told.append(
                f"{words} is slower than float32 on this machine: {fastest:.0f} us a prediction at best, "
                f"against {base.speed.wall_us:.0f}"
            )
    return told


def _cost(form: Form, prefer: Prefer) -> float:
    return float(form.size) if prefer == "size" else form.speed.wall_us


def _price(form: Form, base: Form) -> str:
    """What a form costs that was asked for by name: int8 is neither always smaller nor always faster."""
    more = form.size - base.size
    return f"; it is {more:,} bytes larger than float32, because the model is small" if more > 0 else ""
