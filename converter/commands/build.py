"""`edge-convert build`: a trained model in, a proven bundle out, or no file at all."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from converter.spec import Spec, load_spec
from edge_runtime.errors import EXIT_OK, CommandError
from edge_runtime.manifest import State
from edge_runtime.readings import Floats

if TYPE_CHECKING:
    import onnx

    from converter.data import Dataset
    from converter.evaluate import Judgement, Truth
    from converter.load.source import Answer, SourceModel
    from converter.plan import Plan
    from converter.quantize import Candidate

Request = Literal["auto", "none", "int8", "dynamic", "float16"]
MAX_DROP = 0.01
_SYNTHETIC_ROWS = 256
_THRESHOLD_QUANTILE = 0.99  # of an anomaly score that comes without a threshold: one alarm in a hundred ordinary rows
# A converted model may round a score differently, and with it a row that stands on the fence. More than one row in
# a thousand is no rounding: the conversion changed the model.
_DIFFERING_SHARE = 0.001
_VALUE_TOLERANCE = 1e-3  # of the spread of a regression's values or an anomaly's scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="skops, ONNX; pickle or joblib with --trust")
    parser.add_argument("--spec", type=Path, metavar="SPEC.toml", help="what the model does not tell")
    parser.add_argument("--data", type=Path, help=".npz (x, y), .csv or .parquet: split to calibrate and to judge")
    parser.add_argument("--calibration", type=Path, help="data to calibrate with, instead of a part of --data")
    parser.add_argument("--evaluation", type=Path, help="data to judge with, instead of a part of --data")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT.onnx")
    parser.add_argument("--quantize", choices=("auto", "none", "int8", "dynamic", "float16"), default="auto")
    parser.add_argument(
        "--max-drop", type=float, default=MAX_DROP, metavar="DROP", help="of the metric, at most (default: 0.01)"
    )
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the bundle with this private key")
    parser.add_argument("--trust", action="store_true", help="let code inside the model file run (pickle, joblib, ...)")
    parser.add_argument("--seed", type=int, default=0, help="of the split of --data (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Build it."""
    spec = load_spec(options.spec) if options.spec else Spec()
    if not 0 <= options.max_drop <= 1:
        raise CommandError(f"--max-drop: expected a share between 0 and 1, found {options.max_drop}")
    if options.data and (options.calibration or options.evaluation):
        raise CommandError("--data: expected either --data or --calibration and --evaluation, found both")
    if bool(options.calibration) != bool(options.evaluation):
        raise CommandError("--calibration and --evaluation: expected both, found one")
    if options.output.is_dir() or not options.output.parent.is_dir():
        raise CommandError(f"{options.output}: expected a file in a folder that exists")
    _Build(spec, options).run()
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class _Material:
    """The rows that calibrate and the rows that judge."""

    calibration: Floats
    evaluation: Floats
    truth: "Truth"
    dataset: "Dataset | None"


class _Build:
    """One run, step by step. Each step says what it does; the last writes the file."""

    def __init__(self, spec: Spec, options: argparse.Namespace) -> None:
        self._spec, self._options = spec, options
        self._states: tuple[State, ...] = ()
        self._batch_free = True

    def run(self) -> None:
        from converter.evaluate import judge  # noqa: PLC0415 - heavy from here on
        from converter.load import open_model  # noqa: PLC0415
        from converter.normal_form import normal_form  # noqa: PLC0415
        from converter.plan import agree  # noqa: PLC0415
        from converter.quantize import candidate  # noqa: PLC0415

        options = self._options
        self._say(f"loading {options.model}")
        source = open_model(options.model, self._spec, options.trust)
        plan = agree(self._spec, source, options.model)
        material = self._material(plan, source)
        self._say(f"converting {source.framework} to ONNX")
        core = source.core()
        model = normal_form(core, plan)
        self._states = tuple(State(input=s.input, output=s.output, shape=s.shape) for s in core.states)
        self._batch_free = core.batch_free
        expected = _in_order(source.predict(material.evaluation), plan)
        plan = self._with_threshold(plan, source, material)
        base = candidate(model, "none", material.calibration)
        float_answer = self._answer(base, material.evaluation)
        reference = judge(expected, expected, material.truth, plan.task, plan.threshold)
        found = judge(float_answer, expected, material.truth, plan.task, plan.threshold)
        self._check_float(found, reference, expected, plan)
        for note in source.notes:
            self._say(note)
        self._choose(source, plan, model, material, expected, base, float_answer, reference, found)

    def _answer(self, form: "Candidate", windows: Floats) -> "Answer":
        from converter.evaluate import CHUNK, run, session_of, start_of  # noqa: PLC0415 - heavy

        batch = CHUNK if self._batch_free else 1
        try:
            return run(session_of(form.model), windows, batch, start_of(self._states))
        except Exception as error:
            text = str(error).splitlines()[0]
            raise CommandError(f"{form.name}: onnxruntime cannot run it: {text}") from error

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _material(self, plan: "Plan", source: "SourceModel") -> _Material:
        from converter.data import read_data, split  # noqa: PLC0415 - heavy
        from converter.evaluate import Truth, truth_of  # noqa: PLC0415

        options, spec = self._options, self._spec
        if not options.data and not options.evaluation:
            if options.quantize != "none" and not source.trees:
                raise CommandError(
                    f"--quantize {options.quantize}: expected --data to calibrate and judge by, found none: "
                    "give --data, or --quantize none"
                )
            rows = _synthetic(plan)
            self._say(f"no --data: judged on {len(rows)} made-up rows, by agreement with the source only")
            return _Material(rows, rows, Truth(), None)
        if options.data:
            dataset = read_data(options.data, spec, plan.input)
            needs_calibration = options.quantize in ("auto", "int8") and not source.trees
            calibration, evaluation = split(dataset, options.seed) if needs_calibration else (dataset, dataset)
        else:
            dataset = calibration = read_data(options.calibration, spec, plan.input)
            evaluation = read_data(options.evaluation, spec, plan.input)
        if not len(evaluation):
            raise CommandError(f"{dataset.place}: too few rows: none is left to judge by after calibration")
        truth = truth_of(evaluation.truth, plan.task, plan.labels, plan.classes, evaluation.place)
        how = f"{len(evaluation)} rows to judge by"
        if calibration is not evaluation:
            how = f"{len(calibration)} rows to calibrate with, {how}, none in both"
        self._say(f"reading {dataset.place}: {how}")
        return _Material(calibration.windows, evaluation.windows, truth, dataset)

    def _with_threshold(self, plan: "Plan", source: "SourceModel", material: _Material) -> "Plan":
        if plan.task != "anomaly" or (plan.threshold is not None and self._spec.threshold_quantile is None):
            return plan
        quantile = self._spec.threshold_quantile or _THRESHOLD_QUANTILE
        if material.dataset is None:
            raise CommandError(
                "threshold: the model has none; expected `threshold`, or --data to compute it, found neither"
            )
        scores = source.predict(material.calibration).score
        assert scores is not None
        threshold = float(np.float32(np.quantile(scores, quantile)))
        self._say(f"threshold {threshold:.6g}: the {quantile:g} quantile of {len(scores)} rows")
        return replace(plan, threshold=threshold)

    def _check_float(self, found: "Judgement", reference: "Judgement", expected: "Answer", plan: "Plan") -> None:
        """Refuse a conversion that changed the model, before anything is made of it."""
        rows = len(next(iter(expected.tensors().values())))
        limit = max(1, int(rows * _DIFFERING_SHARE))
        main = expected.value if expected.value is not None else expected.score
        spread = float(np.std(main)) if main is not None else 1.0
        tolerance = _VALUE_TOLERANCE * max(
            spread, float(np.abs(main).max(initial=0.0)) if main is not None else 1.0, 1e-30
        )
        labelled = plan.task == "classification"
        wrong = found.differing > limit if labelled else not found.quantiles[2] <= tolerance
        if wrong or not np.isfinite(found.metric) or reference.metric - found.metric > self._options.max_drop:
            from converter.report import Row, table  # noqa: PLC0415

            self._say(table([Row("source", None, reference), Row("float32 ONNX", None, found)], "metric"))
            raise CommandError(
                f"{self._options.model}: the ONNX form does not answer as the source does "
                f"({found.differing} of {rows} labels differ, scores by up to {found.difference:.3g}): "
                "no file was written"
            )

    def _choose(
        self,
        source: "SourceModel",
        plan: "Plan",
        model: "onnx.ModelProto",
        material: _Material,
        expected: "Answer",
        base: "Candidate",
        float_answer: "Answer",
        reference: "Judgement",
        found: "Judgement",
    ) -> None:
        from converter.evaluate import metric_name  # noqa: PLC0415
        from converter.report import Row, table  # noqa: PLC0415

        options = self._options
        metric = metric_name(plan.task, material.truth)
        forms = [(base, found, float_answer)]
        reason = ""
        methods = _methods(options.quantize, model)
        if options.quantize != "none" and not methods:
            reason = _nothing_to_quantise(source)
        forms += self._try_all(methods, model, material, expected, plan)
        kept, why = self._keep(forms, reference, methods)
        reason = reason or why
        rows: list[Row] = [Row("source", None, reference)]
        rows += [Row(form.name, len(form.model), judgement, kept is form) for form, judgement, _ in forms]
        self._say(table(rows, metric))
        if kept is None:
            raise CommandError(f"{reason}: no file was written")
        self._say(reason)
        judgement, answer = next((judgement, answer) for form, judgement, answer in forms if form is kept)
        record = {
            "requested": options.quantize,
            "method": kept.method,
            "name": kept.name,
            "reason": reason,
            "metric": metric,
            "rows": len(material.evaluation),
            "max_drop": options.max_drop,
            "source_metric": reference.metric,
            "float_metric": found.metric,
            "final_metric": judgement.metric,
            "drop": reference.metric - judgement.metric,
            "differing_labels_float": found.differing,
            "differing_labels": judgement.differing,
            "max_score_difference_float": found.difference,
            "max_score_difference": judgement.difference,
            "score_difference_quantiles": list(judgement.quantiles),
            "bytes_float": len(base.model),
            "bytes": len(kept.model),
            "candidates": [
                {"name": form.name, "bytes": len(form.model), "metric": each.metric, "differing_labels": each.differing}
                for form, each, _ in forms
            ],
        }
        self._write(source, plan, kept, material, answer, record)

    def _try_all(
        self, methods: Sequence[Any], model: "onnx.ModelProto", material: _Material, expected: "Answer", plan: "Plan"
    ) -> list[tuple["Candidate", "Judgement", "Answer"]]:
        from converter.evaluate import judge  # noqa: PLC0415
        from converter.quantize import candidate  # noqa: PLC0415

        tried = []
        for method in methods:
            self._say(f"trying {method}")
            try:
                form = candidate(model, method, material.calibration)
                answer = self._answer(form, material.evaluation)
            except CommandError as error:
                if self._options.quantize != "auto":
                    raise
                self._say(f"left out: {error}")
                continue
            tried.append((form, judge(answer, expected, material.truth, plan.task, plan.threshold), answer))
        return tried

    def _keep(
        self,
        forms: "list[tuple[Candidate, Judgement, Answer]]",
        reference: "Judgement",
        methods: Sequence[Any],
    ) -> "tuple[Candidate | None, str]":
        """The form to ship, and why in words."""
        options = self._options
        base = forms[0][0]
        limit = options.max_drop
        if options.quantize != "auto" and methods:
            form, judgement, _ = forms[-1]
            drop = reference.metric - judgement.metric
            if not drop <= limit:
                return None, f"{form.name}: the metric drops by {drop:.4f}, more than --max-drop {limit:g}"
            return form, f"{form.name}: as asked{_growth(form, base)}"
        good = [(len(form.model), form) for form, judgement, _ in forms if reference.metric - judgement.metric <= limit]
        best = min(good, key=lambda item: item[0])[1]
        if best is base:
            if options.quantize == "none" or not methods:
                return base, "float32: not quantised"
            return base, "float32: no quantised form is both smaller and within --max-drop"
        saved = 1.0 - len(best.model) / len(base.model)
        return best, f"{best.name}: the smallest form within --max-drop {limit:g}, {saved:.0%} smaller than float32"

    def _write(
        self,
        source: "SourceModel",
        plan: "Plan",
        kept: "Candidate",
        material: _Material,
        answer: "Answer",
        record: dict[str, Any],
    ) -> None:
        import onnx  # noqa: PLC0415 - heavy

        from converter.evaluate import start_of  # noqa: PLC0415
        from converter.package import is_batch_invariant, make_manifest, self_test, write_bundle  # noqa: PLC0415

        options = self._options
        states = start_of(self._states)
        invariant = self._batch_free and is_batch_invariant(kept.model, material.evaluation, states)
        golden = self_test(
            kept.model, material.evaluation, answer, states, invariant=invariant, rough=kept.method != "none"
        )
        final = onnx.load_model_from_string(kept.model)
        manifest = make_manifest(
            plan, source, options.model, final, selftest=golden, data=material.dataset, quantization=record,
            batch_invariant=invariant, target_device=self._spec.target_device, batch_free=self._batch_free,
            states=self._states,
        )  # fmt: skip
        write_bundle(final, manifest, options.output, options.sign)
        size = options.output.stat().st_size
        self._say(f"wrote {options.output}: {size:,} bytes, loaded and run in a fresh process")
        if options.sign:
            self._say(f"wrote {options.output}.sig")


def _methods(request: Request, model: "onnx.ModelProto") -> list[Any]:
    from converter.quantize import products_of  # noqa: PLC0415

    if request == "none" or not products_of(model):
        return []
    return ["float16", "dynamic", "int8"] if request == "auto" else [request]


def _nothing_to_quantise(source: "SourceModel") -> str:
    if source.trees:
        return (
            "decision trees are not quantised: they compare readings with thresholds and have no matrix products, "
            "so there is nothing to quantise; the model stays float32"
        )
    return "nothing to quantise: the model has no matrix products or convolutions; it stays float32"


def _growth(form: "Candidate", base: "Candidate") -> str:
    more = len(form.model) - len(base.model)
    return f"; it is {more:,} bytes larger than float32, because the model is small" if more > 0 else ""


def _in_order(answer: "Answer", plan: "Plan") -> "Answer":
    """The source's answer in the order of the bundle's labels."""
    if plan.task != "classification" or plan.order == tuple(range(len(plan.order))):
        return answer
    back = np.argsort(np.array(plan.order))
    assert answer.label is not None
    assert answer.scores is not None
    return replace(answer, label=back[answer.label], scores=answer.scores[:, list(plan.order)])


def _synthetic(plan: "Plan") -> Floats:
    """Rows within the channels' ranges, for a model that comes without data."""
    rng = np.random.default_rng(0)
    shape = plan.input.tensor_shape
    rows = rng.normal(size=(_SYNTHETIC_ROWS, *shape))
    for index, channel in enumerate(plan.input.channels):
        if channel.range is not None:
            low, high = channel.range
            rows[..., index] = rng.uniform(low, high, size=rows.shape[:-1])
    return rows.astype(np.float32)
