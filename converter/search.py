"""The search for the form to ship: each recipe is carried out and measured, and `choice.py` selects a form.

A form beyond the limit is never kept. Where only float32 keeps the metric, or no form is better, the model stays
float32, and a sentence gives the reason.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from converter import footprint
from converter.choice import Form, Found, Prefer, choose, near_a_limit
from converter.evaluate import Judgement, Truth, judge
from converter.layers import Layer, layer_errors
from converter.load.source import Answer
from converter.probe import Probes
from converter.quantize import Candidate, Recipe, Request, candidate, has_products, products_of, sparing, stages
from converter.session import CHUNK, run, session_of, slowness_of, speed_of, start_of
from edge_runtime.bundle.manifest import State, Task
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_LARGE_BYTES = 1 << 20  # of a file: for smaller ones the memory of forms differs by less than an allocator keeps
_FINEST = Recipe("int8", per_channel=True)


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """The data for every form.

    Attributes:
        calibration: rows for the ranges of tensors.
        evaluation: rows for the metric, none of them among the others.
        expected: the source's answers on them.
        truth: what is right.
        task: of the model.
        threshold: of an anomaly.
        states: of a recurrent model.
        batch_free: whether rows may run in one batch.
        say: takes lines of progress.
        probes: rows beyond the data; a form must answer finite numbers where the source does.
        channels: their names, for messages.
        manifest_bytes: the bytes of a file beside the graph.
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
    manifest_bytes: int = 0

    def try_form(self, form: Candidate) -> Form:
        """Run a form on the evaluation rows.

        Raises:
            CommandError: onnxruntime cannot run it, or it answers NaN or infinity to a value that a sensor may send.
        """
        start = start_of(self.states)
        # Dynamic int8 has one scale for all rows of a call, so an answer depends on the other rows. Devices therefore
        # run row by row, and so does this search.
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
        judgement = judge(answer, self.expected, self.truth, self.task, threshold=self.threshold)
        return Form(form, answer, judgement, speed, self.manifest_bytes)

    def layers(self, base: Candidate, form: Candidate) -> tuple[Layer, ...]:
        """The error of each layer of a form against the float graph, on the evaluation rows."""
        exact, found = (onnx.load_model_from_string(each.readable) for each in (base, form))
        together = self.batch_free and form.method != "dynamic"
        return layer_errors(exact, found, self.evaluation, self.states, together=together)

    def reference(self) -> Judgement:
        """The metric of the source on the same rows."""
        return judge(self.expected, self.expected, self.truth, self.task, threshold=self.threshold)


def search(
    model: onnx.ModelProto, base: Form, bench: Bench, request: Request, *, max_drop: float, prefer: Prefer
) -> Found:
    """Try the requested forms, and choose.

    Args:
        model: the float32 model in normal form.
        base: that model as a form, measured.
        bench: the data for every form.
        request: the requested forms.
        max_drop: the loss of the metric that is allowed.
        prefer: the criterion among forms within `max_drop`.
    """
    forms = [base]
    reference = bench.reference().metric
    for recipe in _recipes(model, bench, request, forms, settled=lambda: _settled(forms, request, reference, max_drop)):
        bench.say(f"trying {recipe.name}")
        try:
            forms.append(bench.try_form(candidate(model, recipe, bench.calibration, bench.states)))
        except CommandError as error:
            bench.say(f"left out: {error}")
    if request == "auto" and prefer == "balanced" and len(forms) > 1:
        forms = _weighed(forms, bench)
    kept, reason = choose(forms, request=request, reference=reference, max_drop=max_drop, prefer=prefer)
    return Found(tuple(forms), kept, reason)


def _weighed(forms: Sequence[Form], bench: Bench) -> list[Form]:
    """The forms with their relative time, measured in turns with float32, and the memory of large ones."""
    start, window = start_of(bench.states), bench.evaluation[:1]
    base = session_of(forms[0].candidate.model)
    large = forms[0].size >= _LARGE_BYTES
    if large:
        bench.say("measuring the memory of each form in a process of its own")
    weighed = []
    for form in forms:
        memory = _memory_of(form) if large else 0
        slowness = None
        if form is not forms[0]:
            slowness = slowness_of(base, session_of(form.candidate.model), window, start, near=near_a_limit)
        weighed.append(replace(form, slowness=slowness, memory_bytes=memory))
    return weighed


def _memory_of(form: Form) -> int:
    """The memory of a fresh process for a form; 0 where it cannot be measured."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(form.candidate.model)
        file.flush()
        done = subprocess.run(
            [sys.executable, footprint.__file__, file.name], capture_output=True, text=True, timeout=120, check=False
        )
    return int(done.stdout) if done.returncode == 0 and done.stdout.strip().isdigit() else 0


def _recipes(
    model: onnx.ModelProto, bench: Bench, request: Request, forms: Sequence[Form], *, settled: Callable[[], bool]
) -> Iterator[Recipe]:
    """The recipes one by one; a later stage only if no form of the earlier ones suffices."""
    if not has_products(model):
        return
    inside = not products_of(model)
    for stage in stages(request, inside=inside):
        yield from stage
        if settled():
            return
    if request in ("auto", "int8") and not inside:
        bench.say("looking for the nodes that int8 hurts most")
        # Among equals: per channel and without a histogram calibrator, the finest and the fastest to make.
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
