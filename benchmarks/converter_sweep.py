"""Every estimator of scikit-learn that predicts, and boosters over their objectives, through `build`: right or refused?

`python -m benchmarks.converter_sweep [--keep FILE] [WORD...]` prints a table, a line a cell; with words only cells that
have one of them in their name. `--keep` adds the outcomes to a file, so that the sweep can be run in pieces, and
`--write FILE` makes `docs/converter-sweep.md` of it. A cell is an estimator from scikit-learn's own registry, used
alone, behind a scaler, in a ColumnTransformer, calibrated, voted or over several labels. It is `right` where the
bundle answers as the estimator's own public `predict` and `predict_proba` do, on recorded rows and on rows beyond them;
`refused` with the sentence that `build` says; `wrong` or `traceback` where it is neither, which is a fault: the exit
code is 1 then.

The comparison is written here once more, on purpose, and shares nothing with the judge of `build`.
"""

import contextlib
import inspect
import io
import json
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import onnxruntime
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import make_classification
from sklearn.ensemble import VotingClassifier, VotingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils import all_estimators

from converter.cli import main as convert

Verdict = Literal["right", "refused", "wrong", "traceback", "not fitted"]
_ROWS, _COLUMNS = 160, 4
_BEYOND = (-999.0, 0.0, 255.0, 65535.0, -32768.0)
_SCORE, _VALUE = 2e-4, 2e-4  # of a probability; of the largest value
_LABELS = 0.01  # of rows: on a decision boundary float32 decides otherwise
_BASE = ("estimator", "base_estimator")  # what a meta-estimator calls the one that it is made of
_SEVERAL = ("MultiOutput", "RegressorChain")  # they predict several things at once
_LABELLED = ("ClassifierChain", "MultiOutputClassifier")  # several labels, and nothing else
_FAULTS = ("wrong", "traceback")
_SCORED = ("BisectingKMeans", "GaussianMixture", "IncrementalPCA", "KMeans", "MiniBatchKMeans", "PCA")
_PAGE = Path(__file__).parent.parent / "docs" / "converter-sweep.md"


@dataclass(frozen=True, slots=True)
class Cell:
    """An estimator in one use."""

    name: str
    make: Callable[[], Any]
    kind: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it, and why."""

    verdict: Verdict
    why: str = ""


def cells() -> Iterator[Cell]:
    """Every cell of the sweep."""
    for kind in ("classifier", "regressor", "outlier_detector"):
        listed = all_estimators(type_filter=kind if kind != "outlier_detector" else None)
        for name, each in listed:
            if kind == "outlier_detector" and not issubclass(each, _outlier_mixin()):
                continue
            for use, make in _uses(kind, each):
                yield Cell(f"{name}, {use}", make, "labels" if name in _LABELLED else kind)
                if kind == "classifier" and use == "alone" and name not in _LABELLED and _has_labels(make):
                    yield Cell(f"{name}, several labels", make, "labels")
    for name in _SCORED:
        for use, behind in (("alone", False), ("scaled", True)):
            yield Cell(f"{name}, {use}", partial(_scored, name, behind=behind), "score")
    yield from _boosters()
    yield from _catboost()


def data(kind: str) -> tuple[Any, Any]:
    """Readings in float32, as a device has them, and what is to be predicted."""
    x, y = make_classification(
        _ROWS,
        _COLUMNS,
        n_informative=3,
        n_redundant=0,
        n_classes=3,
        n_clusters_per_class=1,
        class_sep=1.2,
        random_state=0,
    )
    x = np.abs(x * [1.0, 10.0, 0.1, 5.0]).astype(np.float32).astype(np.float64)
    if kind == "labels":
        return x, np.stack([y > 0, x[:, 0] > np.median(x[:, 0]), y == 2], axis=1).astype(int)
    return x, (1.0 + x @ [0.5, 0.1, 2.0, 0.2] if kind == "regressor" else y)


def run(cell: Cell) -> Outcome:
    """Fit it, build it, and hold the bundle to it."""
    x, y = data(cell.kind)
    if cell.name.startswith(_SEVERAL) and cell.kind == "regressor":
        y = np.stack([y, y[::-1]], axis=1)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            model = cell.make()
            model.fit(x) if cell.kind in ("outlier_detector", "score") else model.fit(x, y)
        except Exception as error:  # noqa: BLE001 - an estimator that wants other data is no matter of the converter
            return Outcome("not fitted", _line(error))
        with tempfile.TemporaryDirectory() as place:
            return _built(model, cell.kind, x, Path(place))


def _built(model: Any, kind: str, x: Any, folder: Path) -> Outcome:
    try:
        joblib.dump(model, folder / "m.joblib")
        np.savez(folder / "d.npz", x=x)
        words = ["--trust", "--data", str(folder / "d.npz"), "--quantize", "none", "-o", str(folder / "o.onnx")]
        printed = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()):
            code = convert(["build", str(folder / "m.joblib"), *words], printed)
    except Exception:  # noqa: BLE001 - that is what the sweep looks for
        return Outcome("traceback", traceback.format_exc().strip().splitlines()[-1])
    if code:
        lines = printed.getvalue().strip().splitlines()
        sentence = lines[0].removeprefix(str(folder / "m.joblib")) if lines else ""
        is_sentence = len(lines) == 1 and "Traceback" not in sentence
        return Outcome("refused" if is_sentence else "traceback", sentence)
    difference = _difference(model, kind, x, (folder / "o.onnx").read_bytes())
    return Outcome("wrong", difference) if difference else Outcome("right")


def _difference(model: Any, kind: str, x: Any, bundle: bytes) -> str:
    """How a bundle's answers leave the model's own; empty where they do not."""
    rng = np.random.default_rng(1)
    beyond = np.repeat(x[rng.integers(len(x), size=_COLUMNS)], len(_BEYOND), axis=0)
    for row, value in enumerate(_BEYOND * _COLUMNS):
        beyond[row, row // len(_BEYOND)] = value
    session = onnxruntime.InferenceSession(bundle, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for where, asked in (("recorded rows", x), ("rows beyond them", beyond)):
        try:
            expected = _strangeness(model, asked) if kind == "score" else model.predict(asked)
        except ValueError:
            continue  # it refuses them, and says so as it is built
        found = dict(zip(names, session.run(None, {"window": asked.astype(np.float32)[:, None, :]}), strict=True))
        if kind == "labels":
            off = float(np.mean(np.asarray(expected) != found["labels"]))
            if off > _LABELS:
                return f"{off:.0%} of the labels differ on {where}"
        elif kind == "classifier":
            index = {name: place for place, name in enumerate(model.classes_.tolist())}
            off = np.mean([index[name] for name in np.ravel(expected).tolist()] != found["label"])
            if off > _LABELS:
                return f"{off:.0%} of the labels differ on {where}"
            if hasattr(model, "predict_proba"):
                gap = float(np.nanmax(np.abs(model.predict_proba(asked) - found["scores"]).max(axis=1)))
                if gap > _SCORE and off == 0:
                    return f"a probability is off by {gap:.2g} on {where}"
        elif kind == "regressor":
            with np.errstate(all="ignore"):
                wide = np.asarray(expected, dtype=np.float64).reshape(found["value"].shape)
                same = wide.astype(np.float32) == found["value"]  # both infinite where float32 ends
                limit = _VALUE * max(float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)), 1e-6)
                gap = float(np.where(same, 0.0, np.abs(wide - found["value"])).max())
            if not gap <= limit:
                return f"a value is off by {gap:.2g} on {where}"
        elif kind == "score":
            wide = _strangeness(model, asked)
            gap = float(np.abs(wide - found["score"]).max())
            if not gap <= _VALUE * max(float(np.abs(wide).max()), 1e-6):
                return f"a score is off by {gap:.2g} on {where}"
        else:
            flagged = found["score"] > 0.0
            off = float(np.mean(flagged != (expected == -1)))
            if off > _LABELS:
                return f"{off:.0%} of the alarms differ on {where}"
    return ""


def _has_labels(make: Callable[[], Any]) -> bool:
    """Whether an estimator says of itself that it takes several labels at once."""
    from sklearn.utils import get_tags  # noqa: PLC0415 - beside its one use

    try:
        tags = get_tags(make()).classifier_tags
    except Exception:  # noqa: BLE001 - one that cannot be made is reported as not fitted
        return False
    return bool(tags is not None and tags.multi_label)


def _scored(name: str, *, behind: bool) -> Any:
    """An estimator that measures how strange a row is without a verdict."""
    from sklearn import cluster, decomposition, mixture  # noqa: PLC0415 - beside their one use

    rooms = (cluster, decomposition, mixture)
    model = next(getattr(room, name) for room in rooms if hasattr(room, name))(2)
    return make_pipeline(StandardScaler(), model) if behind else model


def _strangeness(model: Any, x: Any) -> Any:
    """Its score, by the public methods of its last step."""
    last, rows = model, x
    if hasattr(model, "steps"):
        last, rows = model.steps[-1][1], model[:-1].transform(x)
    if hasattr(last, "inverse_transform"):
        return ((rows - last.inverse_transform(last.transform(rows))) ** 2).mean(axis=1)
    return -last.score_samples(rows) if hasattr(last, "score_samples") else last.transform(rows).min(axis=1)


def _uses(kind: str, estimator: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    def alone() -> Any:
        wanted = inspect.signature(estimator).parameters
        if "novelty" in wanted:
            return estimator(novelty=True)
        # A forest that is another one each time has ties in its votes now and then, which float32 decides otherwise.
        seeded = {"random_state": 0} if "random_state" in wanted else {}
        base: Any = LogisticRegression() if kind == "classifier" else Ridge()
        if "estimators" in wanted:  # votes and stacks
            return estimator([("a", base), ("b", make_pipeline(StandardScaler(), base))], **seeded)
        if estimator.__name__ == "SelfTrainingClassifier":  # it has a default, which it refuses
            return estimator(estimator=base)
        needed = [name for name in _BASE if name in wanted and wanted[name].default is inspect.Parameter.empty]
        return estimator(**dict.fromkeys(needed, base), **seeded)

    def in_columns() -> Any:
        steps = [("a", StandardScaler(), [0, 1]), ("b", MinMaxScaler(), [2])]
        return make_pipeline(ColumnTransformer(steps, remainder="passthrough"), alone())

    def voted() -> Any:
        if kind == "regressor":
            return VotingRegressor([("a", alone()), ("b", Ridge())])
        return VotingClassifier([("a", alone()), ("b", LogisticRegression())], voting="soft", weights=[2, 1])

    yield "alone", alone
    yield "scaled", lambda: make_pipeline(StandardScaler(), alone())
    yield "in columns", in_columns
    if kind != "outlier_detector":
        yield "voted", voted
    if kind == "classifier":
        yield "calibrated", lambda: CalibratedClassifierCV(make_pipeline(StandardScaler(), alone()), cv=2)


def _boosters() -> Iterator[Cell]:
    with contextlib.suppress(ImportError):
        import xgboost  # noqa: PLC0415 - an extra

        for objective in ("reg:squarederror", "reg:gamma", "reg:tweedie", "count:poisson", "reg:absoluteerror"):
            yield Cell(
                f"XGBRegressor, {objective}",
                lambda name=objective: xgboost.XGBRegressor(objective=name, n_estimators=8, n_jobs=1),  # type: ignore[misc]
                "regressor",
            )
        for objective in ("binary:hinge", "multi:softprob"):
            yield Cell(
                f"XGBClassifier, {objective}",
                lambda name=objective: xgboost.XGBClassifier(objective=name, n_estimators=8, n_jobs=1),  # type: ignore[misc]
                "classifier",
            )
        yield Cell(
            "XGBClassifier, missing=-999",
            lambda: xgboost.XGBClassifier(missing=-999.0, n_estimators=8, n_jobs=1),
            "classifier",
        )
    with contextlib.suppress(ImportError):
        import lightgbm  # noqa: PLC0415 - an extra

        for objective in ("regression", "poisson", "gamma", "tweedie", "quantile", "huber"):
            yield Cell(
                f"LGBMRegressor, {objective}",
                lambda name=objective: lightgbm.LGBMRegressor(objective=name, n_estimators=8, verbose=-1, n_jobs=1),  # type: ignore[misc]
                "regressor",
            )
        for objective in ("multiclass", "multiclassova"):
            yield Cell(
                f"LGBMClassifier, {objective}",
                lambda name=objective: lightgbm.LGBMClassifier(objective=name, n_estimators=8, verbose=-1, n_jobs=1),  # type: ignore[misc]
                "classifier",
            )


def _catboost() -> Iterator[Cell]:
    with contextlib.suppress(ImportError):
        import catboost  # noqa: PLC0415 - an extra

        quiet = {"iterations": 8, "thread_count": 1, "verbose": 0, "allow_writing_files": False}
        for kind, each, losses in (
            (
                "regressor",
                catboost.CatBoostRegressor,
                ("RMSE", "MAE", "Poisson", "Tweedie:variance_power=1.5", "Huber:delta=1"),
            ),
            ("classifier", catboost.CatBoostClassifier, ("MultiClass", "MultiClassOneVsAll")),
            ("labels", catboost.CatBoostClassifier, ("MultiLogloss",)),
        ):
            for loss in losses:
                yield Cell(f"{each.__name__}, {loss}", partial(each, loss_function=loss, **quiet), kind)


def _outlier_mixin() -> Any:
    from sklearn.base import OutlierMixin  # noqa: PLC0415 - beside its one use

    return OutlierMixin


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100] if lines else ''}"


def write_page(outcomes: dict[str, Outcome], page: Path = _PAGE) -> None:
    """The page of all cells: a line an estimator, a column a use, and a sentence for each refusal."""
    uses = ["alone", "scaled", "in columns", "voted", "calibrated", "several labels"]
    table: dict[str, dict[str, Outcome]] = {}
    for name, outcome in outcomes.items():
        estimator, _, use = name.partition(", ")
        table.setdefault(estimator if use in uses else name, {})[use if use in uses else "alone"] = outcome
    counts = Counter(outcome.verdict for outcome in outcomes.values())
    lines = [
        "# The sweep over estimators",
        "",
        "Made by `python -m benchmarks.converter_sweep --write FILE`; the module's docstring explains the verdicts.",
        f"{len(outcomes)} cells: {', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}.",
        "`not fitted` is an estimator that rejects the data of the sweep, or requires more arguments.",
        "",
        f"| estimator | {' | '.join(uses)} |",
        f"|---|{'---|' * len(uses)}",
    ]
    for estimator, row in sorted(table.items()):
        lines.append(f"| {estimator} | {' | '.join(row[use].verdict if use in row else '' for use in uses)} |")
    lines += ["", "## Why", "", "| cell | verdict | the sentence |", "|---|---|---|"]
    for name, outcome in sorted(outcomes.items()):
        if outcome.verdict != "right":
            why = outcome.why.strip(": ").replace("|", "/").replace("`", "'")
            lines.append(f"| {name} | {outcome.verdict} | {why[:220]} |")
    page.write_text("\n".join(lines) + "\n")


def read_kept(file: Path) -> dict[str, Outcome]:
    """The outcomes of a file, the last of each cell."""
    lines = map(json.loads, file.read_text().splitlines())
    return {each["cell"]: Outcome(each["verdict"], each["why"]) for each in lines}


def main(words: list[str]) -> int:
    """Print the table; 1 where a cell is wrong or a traceback."""
    if words[:1] == ["--write"]:
        write_page(read_kept(Path(words[1])))
        return 0
    keep = Path(words[1]) if words[:1] == ["--keep"] else None
    words = words[2:] if keep else words
    counts: Counter[str] = Counter()
    print("| cell | verdict | why |\n|---|---|---|")
    for cell in cells():
        if words and not any(word in cell.name for word in words):
            continue
        outcome = run(cell)
        counts[outcome.verdict] += 1
        if keep is not None:
            with keep.open("a") as file:
                file.write(json.dumps({"cell": cell.name, "verdict": outcome.verdict, "why": outcome.why}) + "\n")
        print(f"| {cell.name} | {outcome.verdict} | {outcome.why.strip(': ').replace('|', '/')[:160]} |", flush=True)
    print("\n" + ", ".join(f"{verdict}: {count}" for verdict, count in counts.most_common()))
    return int(any(counts[fault] for fault in _FAULTS))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
