"""One conversion, from the model's file to the bundle, step by step.

Load the model, match it with the specification, convert it to the normal form, compare that with the source, search for
the form to ship, package it. Nothing is written before the last step. A failed step ends in one message.

Longer than 500 lines, because the steps are read from top to bottom in their order; other modules carry them out.
"""

import argparse
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from converter.choice import Form, Found, prices
from converter.data import Dataset, read_data, split, table_columns
from converter.evaluate import Truth, metric_name, truth_of
from converter.fidelity import Ask, Fidelity, compare, label_is_not_the_largest, probability_fault
from converter.graph.build import serialize
from converter.graph.shrink import Saving, settled, shrunk, unasked
from converter.layers import Layer, worst_of
from converter.load import open_model
from converter.load.source import Answer, Core, SourceModel
from converter.load.tensors import layout_of
from converter.named_answers import compare_named, rows_to_judge
from converter.normal_form import normal_form
from converter.package import write_bundle
from converter.plan import BundlePlan, agree, with_unknown
from converter.probe import ask_beyond, beyond
from converter.quantize import Candidate, Recipe, candidate, has_products
from converter.reference import make_reference
from converter.report import FormRow, Proof, table, write_page
from converter.rounding import step_of, steps_between
from converter.search import Bench, search
from converter.session import CHUNK, run, session_of, start_of
from converter.spec import Spec, UncertaintySpec
from converter.stages import stage
from converter.stopwatch import RowProgress, Stopwatch
from converter.stream_check import STREAM_ROWS, compare_stream
from converter.suspicions import about_the_metric, admitted, exchanged_channels, order_of_columns
from converter.targets import estimate, this_host, warnings_for
from converter.uncertainty import HeldOut
from converter.uncertainty import check_spec as check_uncertainty
from converter.whole_file import WholeFile, is_quantised
from edge_runtime.bundle.manifest import State
from edge_runtime.bundle.measured import Measured, read_measured
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_SYNTHETIC_ROWS = 256
_ANOTHER_WAY = "use another estimator or step, or export the model to ONNX yourself"
_THRESHOLD_QUANTILE = 0.99  # for an anomaly score without a threshold: one alarm in a hundred normal rows
# A converted model may round a score differently, which can change the label of a row at a decision boundary. More than
# one row in a thousand is no rounding: the conversion changed the model.
_DIFFERING_SHARE = 0.001
_DRIFT_ROWS = 10_000
_COMPARED_ROWS = 2048  # between a graph and its smaller self


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """The calibration and the evaluation rows. `dataset` is None where there is no data.

    `held` are the calibration rows with their truth, where the specification has `[uncertainty]`.
    """

    calibration: Floats
    evaluation: Floats
    truth: Truth
    dataset: Dataset | None
    held: HeldOut | None = None


class Conversion:
    """The steps, with the user's options and the output for progress."""

    def __init__(self, spec: Spec, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        self._spec, self._options, self._say = spec, options, say
        self._time = Stopwatch()

    def run(self) -> None:
        """Carry out the steps.

        Raises:
            CommandError: it cannot be done, or the proof failed; no bundle was written.
        """
        options = self._options
        self._time.begin("loading the model")
        self._say(f"loading {options.model}")
        with stage(options.model, "loading it"):
            source = open_model(options.model, self._spec, options.trust)
        columns = table_columns(options.data or options.evaluation, self._spec)
        plan = agree(self._spec, source, options.model, columns)
        source.settle(plan.input.tensor_shape)
        plan = with_unknown(plan, source)
        self._time.begin("reading the data")
        material = self._fewer(self._material(plan, source), plan)
        self._time.begin("converting")
        self._say(f"converting {source.framework} to ONNX")
        with stage(options.model, "converting it to ONNX", _ANOTHER_WAY):
            core = source.core()
        layout = None
        if self._spec.frame is not None and core.arrange is None:
            layout = core.arrange = layout_of(core.shape, self._spec, str(options.model))
        with stage(options.model, "bringing it into the normal form", _ANOTHER_WAY):
            plain = normal_form(core, plan)

        def ask(windows: Floats) -> Answer:
            with stage(options.model, f"asking the model in {source.framework}"):
                pieces = RowProgress(self._say, f"asking the model in {source.framework}").pieces(windows)
                return Answer.joined(
                    [source.predict(each if layout is None else layout.arrange(each, np.float32)) for each in pieces]
                )

        self._time.begin("asking the model")
        self._say(f"asking the model in {source.framework}")
        plan = self._with_threshold(plan, ask, material)
        drift = _drift_in_words(source, material.evaluation)
        for note in (*source.notes, *drift):
            self._say(note)

        def ask_in_order(windows: Floats) -> Answer:
            return _in_order(ask(windows), plan)

        bench = Bench(
            material.calibration, material.evaluation, ask_in_order(material.evaluation),
            material.truth, plan.task, plan.threshold,
            tuple(State(input=state.input, output=state.output, shape=state.shape) for state in core.states),
            core.batch_free, self._say,
        )  # fmt: skip
        self._check_source(source, plan, bench, step_of(plain) or 0.0)
        self._question(plan, columns, bench, ask_in_order)
        self._time.begin("proving the float32 form")
        self._say("comparing the float32 form with it")
        left = (*source.savings, *unasked(core.model, _asked(core)))
        with stage(options.model, "running its ONNX form", _ANOTHER_WAY):
            model, savings = self._shrink(plain, bench)
        base = bench.try_form(candidate(model, Recipe("none"), material.calibration))
        savings = (*left, *savings, _names(base.candidate))
        self._tell_savings(savings, base)
        self._check_float(base, bench, plan, ask_in_order)
        self._check_stream(source, base, bench, plan)
        bench = self._beyond_the_data(base, model, bench, plan, source=(ask_in_order, source.sentinels))
        self._time.begin("calibrating the limits of drift")
        reference = make_reference(plan, material.dataset, base.answer, self._spec.drift, say=self._say)
        file = WholeFile(
            source=source, plan=plan, reference=reference, options=options, target=self._target,
            metric=metric_name(plan.task, material.truth), savings=savings, held=material.held,
        )  # fmt: skip
        beside = file.bytes_beside(base, bench)
        bench, base = replace(bench, manifest_bytes=beside), replace(base, manifest_bytes=beside)
        self._time.begin("making and judging forms")
        found = search(model, base, bench, options.quantize, max_drop=options.max_drop, prefer=options.prefer)
        if options.quantize != "none" and not has_products(model):
            found = Found(found.forms, base, _nothing_to_quantise(source, model))
        self._finish(file, plan, bench, found, drift=drift)

    def _shrink(self, plain: onnx.ModelProto, bench: Bench) -> tuple[onnx.ModelProto, tuple[Saving, ...]]:
        """The graph without parts that no answer needs, if its answers stay the same to the bit."""
        small, first = settled(plain)
        for rearranged in (True, False):
            smaller, savings = shrunk(small, rearranged=rearranged)
            if serialize(smaller) == serialize(plain):
                return plain, ()
            if self._same_bits(plain, smaller, bench):
                return smaller, (*first, *savings)
        self._say("left as it is: the graph without its unused parts would round differently")
        return plain, ()

    def _same_bits(self, plain: onnx.ModelProto, small: onnx.ModelProto, bench: Bench) -> bool:
        rows, start = bench.evaluation[:_COMPARED_ROWS], start_of(bench.states)
        batch = CHUNK if bench.batch_free else 1
        one, other = (run(session_of(serialize(form)), rows, batch, start).tensors() for form in (plain, small))
        return all(part.tobytes() == other[name].tobytes() for name, part in one.items())

    def _tell_savings(self, savings: tuple[Saving, ...], base: Form) -> None:
        saved = sum(saving.bytes for saving in savings)
        share = saved / (base.size + saved)
        listed = ", ".join(map(str, savings))
        self._say(f"left out without changing an answer: {listed}; {share:.0%} of {base.size + saved:,} bytes")

    def _material(self, plan: BundlePlan, source: SourceModel) -> Material:
        options = self._options
        sure = self._spec.uncertainty
        if not options.data and not options.evaluation:
            if sure is not None:
                raise CommandError("[uncertainty]: expected --data, or --calibration and --evaluation, found neither")
            if options.quantize != "none" and not source.trees:
                raise CommandError(
                    f"--quantize {options.quantize}: expected --data to calibrate and judge by, found none: "
                    "give --data, or --quantize none"
                )
            rows = _synthetic(plan)
            self._say(f"no --data: judged on {len(rows)} made-up rows, by agreement with the source only")
            return Material(rows, rows, Truth(), None)
        if options.data:
            dataset = self._read(options.data, plan)
            needs_calibration = sure is not None or (options.quantize in ("auto", "int8") and not source.trees)
            calibration, evaluation = split(dataset, options.seed) if needs_calibration else (dataset, dataset)
        else:
            dataset = calibration = self._read(options.calibration, plan)
            evaluation = self._read(options.evaluation, plan)
        if not len(evaluation):
            raise CommandError(f"{dataset.place}: too few rows: none is left to judge by after calibration")
        truth = truth_of(evaluation.truth, plan.task, plan.labels, plan.classes, place=evaluation.place)
        how = f"{len(evaluation)} rows to judge by"
        if calibration is not evaluation:
            how = f"{len(calibration)} rows to calibrate with, {how}, none in both"
        self._say(f"reading {dataset.place}: {how}")
        held = None if sure is None else self._held_out(sure, plan, calibration, evaluation)
        return Material(calibration.windows, evaluation.windows, truth, dataset, held)

    def _held_out(self, spec: UncertaintySpec, plan: BundlePlan, calibration: Dataset, evaluation: Dataset) -> HeldOut:
        """The rows that calibrate uncertainty; none of them is among those that check it."""
        truth = truth_of(calibration.truth, plan.task, plan.labels, plan.classes, place=calibration.place)
        has_truth = truth.is_known and evaluation.truth is not None
        check_uncertainty(spec, plan.task, len(calibration), has_truth=has_truth, place=calibration.place)
        whole = "whole recordings and blocks, " if evaluation.groups is not None else ""
        place = f"{len(calibration):,} rows of {calibration.place} ({whole}none of those that it is checked by)"
        return HeldOut(spec, calibration.windows, truth, evaluation.groups, place)

    def _fewer(self, material: Material, plan: BundlePlan) -> Material:
        """Evaluation rows; fewer where the answers to all of them would not fit into memory."""
        numbers = sum(math.prod(tensor.shape) for tensor in plan.tensors)
        rows = len(material.evaluation)
        count = rows_to_judge(numbers, rows)
        if count == rows:
            return material
        self._say(f"judged on {count} of {rows} rows, evenly spread: each answer holds {numbers:,} numbers")
        picked = np.linspace(0, rows - 1, count).astype(np.int64)
        return replace(material, evaluation=material.evaluation[picked])

    def _read(self, path: Path, plan: BundlePlan) -> Dataset:
        dataset, sentences = admitted(read_data(path, self._spec, plan.input), plan)
        for line in sentences:
            self._say(line)
        return dataset

    def _with_threshold(self, plan: BundlePlan, ask: Callable[[Floats], Answer], material: Material) -> BundlePlan:
        if plan.task != "anomaly" or (plan.threshold is not None and self._spec.threshold_quantile is None):
            return plan
        quantile = self._spec.threshold_quantile or _THRESHOLD_QUANTILE
        if material.dataset is None:
            raise CommandError(
                "threshold: the model has none; expected `threshold`, or --data to compute it, found neither"
            )
        scores = ask(material.calibration).score
        assert scores is not None
        threshold = float(np.float32(np.quantile(scores, quantile)))
        self._say(f"threshold {threshold:.6g}: the {quantile:g} quantile of {len(scores)} rows")
        return replace(plan, threshold=threshold)

    def _check_source(self, source: SourceModel, plan: BundlePlan, bench: Bench, step: float) -> None:
        """Refuse answers that are not finite, and scores that are no probabilities."""
        for name, part in bench.expected.tensors().items():
            bad = np.flatnonzero(~np.isfinite(part.reshape(len(part), -1)).all(axis=1))
            if len(bad):
                raise CommandError(
                    f"{self._options.model}: expected finite answers, found NaN or infinity in {name} of "
                    f"{len(bad):,} of {len(part):,} rows, the first in row {bad[0]}: devices publish no such answer: "
                    "give the channels a `range` that leaves such readings out, or repair the model"
                )
        if plan.task not in ("classification", "multilabel"):
            return
        fault = probability_fault(
            bench.expected, plan.labels, independent=source.independent, own_rule=source.own_rule, step=step
        )
        if fault:
            raise CommandError(
                f"{self._options.model}: the source's scores are no probabilities of its classes: {fault}: "
                "say in [model] what they are (activation = 'softmax', 'sigmoid' or 'none'; output), or save the model "
                "with probabilities"
            )
        odd = label_is_not_the_largest(bench.expected)
        if odd:
            self._say(
                f"in {odd:,} of {len(bench.evaluation):,} rows the label has not the largest score: the model's own "
                "predict decides by another rule than its probabilities, and the bundle does as it does"
            )

    def _question(self, plan: BundlePlan, columns: tuple[str, ...], bench: Bench, ask: Ask) -> None:
        """Print warnings about data and metric."""
        sentences = order_of_columns(plan, columns)
        sentences += about_the_metric(bench.reference(), bench.truth, plan)
        sentences += exchanged_channels(ask, bench.evaluation, bench.truth, plan)
        if self._options.data and bench.truth.is_known:
            sentences.append(
                "these rows may be those the model was trained on, and then the metric is too good: keep a share of "
                "the recordings out of training, and give it with --calibration and --evaluation"
            )
        for line in sentences:
            self._say(line)

    def _check_float(self, form: Form, bench: Bench, plan: BundlePlan, ask: Ask) -> None:
        """Refuse a conversion that changed the model, before forms are made of it."""
        rows, reference, found = len(bench.evaluation), bench.reference(), form.judgement
        model = onnx.load_model_from_string(form.candidate.model)
        steps = steps_between(model, form.answer, bench.expected)
        seen: Fidelity | None = None
        loses = not reference.metric - found.metric <= self._options.max_drop
        if steps is not None:
            if steps.any_beyond:
                self._say(str(steps))
            # Without truth the metric counts labels that differ, and rounding decides between equal scores.
            loses = loses and steps.any_beyond and bench.truth.is_known
            wrong = not steps.is_rounding
        elif plan.task == "anomaly" and is_quantised(model):
            wrong = found.differing > max(1, int(rows * _DIFFERING_SHARE))
        elif form.answer.named is not None:
            seen = compare_named(form.answer, bench.expected, plan.task, plan.labels)
            wrong = not seen.is_faithful
        else:
            seen = compare(form.answer, bench.expected, bench.evaluation, ask, names=_names_of(plan))
            wrong = not seen.is_faithful
        if wrong or loses:
            name = metric_name(plan.task, bench.truth)
            self._say(table([FormRow("source", None, reference), FormRow("float32 ONNX", None, found)], name))
            worst = f"row {seen.first.row}: {seen.first}; " if seen is not None and seen.first is not None else ""
            off = found.differing if seen is None else len(seen.wrong)
            raise CommandError(
                f"{self._options.model}: the ONNX form does not answer as the source does: {worst}"
                f"{off:,} of {rows:,} rows are off ({found.differing:,} labels differ, scores by up to "
                f"{found.difference:.3g}): no file was written"
            )
        if seen is not None and len(seen.boundary):
            self._say(
                f"{len(seen.boundary):,} of {rows:,} rows lie on a decision boundary of the model "
                f"(the first: row {seen.boundary[0]}): "
                "the source itself gives another answer to a reading changed by one rounding"
            )

    def _check_stream(self, source: SourceModel, base: Form, bench: Bench, plan: BundlePlan) -> None:
        """Refuse a recurrent model whose answers to a stream, with states handed on, differ from the source's."""
        if not bench.states:
            return
        rows = bench.evaluation[:STREAM_ROWS]
        with stage(self._options.model, f"asking the model in {source.framework} for a stream"):
            answers = source.stream(rows)
        if answers is not None:
            expected = _in_order(answers[0], plan), answers[1]
            place = str(self._options.model)
            self._say(compare_stream(base.candidate.model, rows, bench.states, expected, plan=plan, place=place))

    def _beyond_the_data(
        self,
        base: Form,
        model: onnx.ModelProto,
        bench: Bench,
        plan: BundlePlan,
        *,
        source: tuple[Ask, tuple[float, ...]],
    ) -> Bench:
        """Compare the ONNX form with the source beyond the recordings; return the rows that every form must answer."""
        ask, sentinels = source
        bench = replace(bench, channels=tuple(channel.name for channel in plan.input.channels))
        where = "the channel" if plan.input.channels else "[frame]"
        probes = ask_beyond(plan, bench.evaluation, ask, model, sentinels=sentinels)
        if probes.refused is not None:
            point, why = probes.refused
            if point.kind == "missing":
                raise CommandError(
                    f"{self._options.model}: the model refuses {point.in_words(bench.channels)}: {why}: take "
                    'missing = "allowed" out of the specification, or put an imputer before the model'
                )
            self._say(
                f"warning: the source refuses {point.in_words(bench.channels)}: {why}; a bundle may answer something "
                f"there: give {where} a `range` that leaves it out"
            )
        if is_quantised(model):
            return replace(bench, probes=probes)
        near, far = beyond(
            probes, base.candidate.model, bench.states, CHUNK if bench.batch_free else 1, ask=ask,
            names=_names_of(plan), recorded=bench.evaluation, expected=bench.expected, task=plan.task,
        )  # fmt: skip
        if near is not None:
            raise CommandError(
                f"{self._options.model}: the ONNX form does not answer as the source does beyond the data: with "
                f"{near.point.in_words(bench.channels)} {near.difference}: give {where} a `range` that leaves "
                "the value out, so that devices reject it; no file was written"
            )
        if far is not None:
            self._say(
                f"warning: with {far.point.in_words(bench.channels)} the float32 graph leaves the source: "
                f"{far.difference}: give the channel a `range`, so that devices reject such readings"
            )
        return replace(bench, probes=probes)

    def _finish(self, file: WholeFile, plan: BundlePlan, bench: Bench, found: Found, *, drift: list[str]) -> None:
        self._time.begin("writing the bundle")
        self._say("measuring what stands in the manifest, and trying the bundle in a fresh process")
        savings, kept, data = file.savings, found.kept, b""
        layers: tuple[Layer, ...] = ()
        if kept is not None:
            layers = bench.layers(found.forms[0].candidate, kept.candidate) if kept.is_rough else ()
            found, data = file.of(found, bench, layers, drift)
            kept = found.kept
        rows = [FormRow("source", None, bench.reference()), *map(_row, found.forms)]
        rows = [replace(row, kept=form is kept) for row, form in zip(rows, (None, *found.forms), strict=True)]
        self._say(table(rows, file.metric))
        if kept is None:
            self._report(plan, bench, found, rows, savings=savings, notes=[])
            raise CommandError(f"{found.reason}: no file was written")
        self._say(found.reason)
        if layers:
            self._say(f"least exact layers: {', '.join(map(_layer_in_words, worst_of(layers)))}")
        peak = self._write(data)
        notes = [*drift, *file.about_uncertainty(kept, bench), *prices(found.forms), *self._advice(kept, peak)]
        for line in notes[len(drift) :]:
            self._say(line)
        notes += file.reference.notes
        self._time.begin("writing the report" if self._options.report else "")
        try:
            self._report(plan, bench, found, rows, savings=savings, notes=notes)
        except KeyboardInterrupt:
            raise CommandError(f"interrupted: {self._options.output} was written, the report was not") from None
        self._say(self._time.in_words())

    def _advice(self, kept: Form, peak_bytes: int) -> list[str]:
        """Sentences about the target device; a time that a device measured replaces the estimate."""
        target = self._target
        if target is None:
            return []
        notes = [f"warning: {text}" for text in warnings_for(target, kept.size, kept.candidate.method, peak_bytes)]
        measured = _measured(self._options.output)
        if measured is not None:
            return [*notes, f"measured on {measured.machine}: {measured.in_words()}"]
        return [*notes, estimate(target, kept.speed.cpu_us, this_host())]

    def _report(
        self,
        plan: BundlePlan,
        bench: Bench,
        found: Found,
        rows: list[FormRow],
        *,
        savings: Sequence[Saving],
        notes: list[str],
    ) -> None:
        options = self._options
        if not options.report:
            return
        self._say("measuring every layer of every form for the report")
        base = found.forms[0].candidate
        proof = Proof(
            model=options.model.name, plan=plan, metric=metric_name(plan.task, bench.truth), rows=rows, bench=bench,
            answers=[form.answer for form in found.forms],
            kept=found.forms.index(found.kept) if found.kept else None, reason=found.reason,
            max_drop=options.max_drop, savings=savings,
            layers=[bench.layers(base, form.candidate) if form.is_rough else () for form in found.forms], notes=notes,
        )  # fmt: skip
        write_page(options.report, proof)
        self._say(f"wrote {options.report}")

    @property
    def _target(self) -> str | None:
        target: str | None = self._options.target or self._spec.target_device
        return target

    def _write(self, data: bytes) -> int:
        """Write the bundle; return the peak memory of the process that tried it."""
        options = self._options
        peak = write_bundle(data, options.output, options.sign)
        self._say(f"wrote {options.output}: {len(data):,} bytes, loaded and run in a fresh process of {peak >> 20} MB")
        if options.sign:
            self._say(f"wrote {options.output}.sig")
        return peak


def _row(form: Form) -> FormRow:
    came = form.candidate.method == "none" and is_quantised(onnx.load_model_from_string(form.candidate.model))
    name = "int8, as it came" if came else form.candidate.name
    return FormRow(name, form.size, form.judgement, speed=form.speed)


def _drift_in_words(source: SourceModel, windows: Floats) -> list[str]:
    some = windows[:_DRIFT_ROWS]
    moved = source.drift(some)
    if moved is None:
        return []
    notes = (
        f"scaler and trees: in float32, {moved} of {len(some)} rows would go another way through the trees; "
        "the scaler is folded into the thresholds, exactly, so that none does"
    )
    return [notes]


def _names_of(plan: BundlePlan) -> tuple[str, ...]:
    """The names of an answer's columns."""
    if plan.task == "regression":
        return tuple(target.name for target in plan.targets)
    return plan.labels or ("score",)


def _asked(core: Core) -> list[str]:
    """The tensors of a source's graph that the normal form takes over."""
    return [*core.outputs.values(), *(state.output for state in core.states)]


def _names(form: Candidate) -> Saving:
    model = onnx.load_model_from_string(form.readable)
    return Saving("names inside the graph", len(model.graph.node), len(form.readable) - len(form.model))


def _layer_in_words(layer: Layer) -> str:
    return f"{layer.name} ({layer.operator}) {layer.sqnr_db:.0f} dB"


def _measured(bundle: Path) -> Measured | None:
    """The figures that a device measured for exactly this file, where they lie beside it."""
    return read_measured(bundle, hashlib.sha256(bundle.read_bytes()).hexdigest())


def _nothing_to_quantise(source: SourceModel, model: onnx.ModelProto) -> str:
    if is_quantised(model):
        return "nothing to quantise: the model came quantised, and stays as it is"
    if source.trees:
        return (
            "decision trees are not quantised: they compare readings with thresholds and have no matrix products, "
            "so there is nothing to quantise; the model stays float32"
        )
    return "nothing to quantise: the model has no matrix products or convolutions; it stays float32"


def _in_order(answer: Answer, plan: BundlePlan) -> Answer:
    """The source's answer in the order of the bundle's labels."""
    if plan.order == tuple(range(len(plan.order))) or answer.scores is None:
        return answer
    if answer.labels is not None:
        places = list(plan.order)
        return replace(answer, labels=answer.labels[:, places], scores=answer.scores[:, places])
    back = np.argsort(np.array(plan.order))
    assert answer.label is not None
    assert answer.scores is not None
    return replace(answer, label=back[answer.label], scores=answer.scores[:, list(plan.order)])


def _synthetic(plan: BundlePlan) -> Floats:
    """Rows within the channels' ranges, for a model that comes without data."""
    rng = np.random.default_rng(0)
    shape = (_SYNTHETIC_ROWS, *plan.input.tensor_shape)
    if plan.input.dtype in ("int32", "int64"):
        low, high = plan.input.range or (0, 1)
        return rng.integers(math.ceil(low), math.floor(high), shape, endpoint=True).astype(np.float32)
    rows = rng.normal(size=shape)
    if plan.input.range is not None:
        return rng.uniform(*plan.input.range, size=shape).astype(np.float32)
    for index, channel in enumerate(plan.input.channels):
        if channel.categories:
            rows[..., index] = rng.integers(len(channel.categories), size=rows.shape[:-1])
        elif channel.range is not None:
            low, high = channel.range
            rows[..., index] = rng.uniform(low, high, size=rows.shape[:-1])
    return rows.astype(np.float32)
