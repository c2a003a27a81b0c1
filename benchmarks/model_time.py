"""The model's own time beside what a user would pick instead: LiteRT, scikit-learn, the booster itself, tree compilers.

    python -m benchmarks.model_time [--peers PYTHON] [--data FOLDER] [--quick] [--json FILE] [NAME...]

Each subject is a model of the data folder or a forest, converted as a user does it. Bundle and peers are processes of
their own with one thread each (`peers/model_answer.py`), all alive, on one core; they take turns, and the figure is the
least CPU time of a turn. Each takes the same windows to the same answer: rounding to int8 and the distance of a
reconstruction belong to LiteRT's calls, since its user writes them. Answers are compared first, so that no peer
computes something else. `--peers` names the Python of an environment with further libraries (treelite, tl2cgen,
lleaves); what is not installed is named and left out. The exit code is 1 where answers differ.
"""

import argparse
import contextlib
import io
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import process
from benchmarks.converted import CASES, MAX_DROP, RECIPES, Samples
from benchmarks.names import DAEMON
from benchmarks.peers.model_answer import MISSING
from benchmarks.results import Results
from benchmarks.targets import PEERS, ROOT
from converter.cli import main as convert
from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.open import open_bundle

TURNS, QUICK_TURNS = 15, 3
TURN_NS, QUICK_TURN_NS = 30_000_000, 5_000_000
WINDOWS = 64
DATA = ROOT.parent / "shared" / "data"
START_SECONDS = 600.0  # a compiler may take minutes over a thousand trees
CLOSE, LEVEL = 1e-4, 0.035  # how far answers may be apart: of floats, and where int8 rounds elsewhere
RUNTIME, ALONE = "runtime", "LiteRT, its call alone"  # the latter takes nothing to an answer: shown, and no peer
SCIPY_PEERS = ("scikit-learn", "treelite", "tl2cgen")
BOOSTER_PEERS = ("LightGBM", "treelite", "lleaves", "tl2cgen")
FIGURE = "{}, {}, µs CPU a window"
BEST = "the best other"


@dataclass(frozen=True, slots=True)
class Subject:
    """One line of the table.

    Attributes:
        name: in the table.
        prepare: gets the data folder and a folder to write into; hands back what `edge-convert` is to have, what the
            peers are to have, and rows to calibrate with and to ask.
        peers: who else runs it.
        spec: for the conversion.
        quantize: the form that is asked for.
        apart: how far answers may be apart.
        quick: whether it belongs to the quick form.
        needs_data: whether it is made of the data folder.
        scale: what the specification has the bundle multiply windows by, and the peers therefore have to.
    """

    name: str
    prepare: Callable[[Path, Path], tuple[Path, Path, Samples, Samples]]
    peers: tuple[str, ...]
    spec: str
    quantize: str = "none"
    apart: float = CLOSE
    quick: bool = False
    needs_data: bool = True
    scale: float = 1.0


@dataclass(slots=True)
class Line:
    """What came of a subject: microseconds a window of each, alone and among many, and how far answers are apart."""

    name: str
    one: dict[str, float] = field(default_factory=dict)
    many: dict[str, float] = field(default_factory=dict)
    apart: dict[str, float] = field(default_factory=dict)

    def ratio(self, times: dict[str, float]) -> float | None:
        """The runtime's time in that of the best other."""
        others = [time for name, time in times.items() if name not in (RUNTIME, ALONE)]
        return times[RUNTIME] / min(others) if others else None


class Answerer:
    """A process that runs the model in one way.

    Raises:
        LookupError: a library is not installed; its name.
        RuntimeError: it ended, with what it printed.
    """

    def __init__(self, python: str, kind: str, model: Path, asked: Path, *, core: int) -> None:
        command = [python, str(PEERS / "model_answer.py"), kind, str(model), str(asked)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, bufsize=1,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509 - no thread runs here
        )  # fmt: skip
        first = self._line()
        if first != "ready":
            is_missing, answered = self._process.wait(START_SECONDS) == MISSING, self._said()
            self.close()
            raise LookupError(first) if is_missing else RuntimeError(answered)

    def ask(self, command: str) -> str:
        """One command, one line."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        return self._line()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _line(self) -> str:
        assert self._process.stdout is not None
        limit = threading.Timer(START_SECONDS, self._process.kill)
        limit.start()
        line = self._process.stdout.readline().strip()
        limit.cancel()
        if not line:
            self._process.wait(START_SECONDS)
            raise RuntimeError(self._said() or f"ended, or gave no answer in {START_SECONDS:.0f} s")
        return line

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]


def subjects() -> Iterator[Subject]:
    """Every line of the table."""
    for name, peer, apart in (
        ("keywords, float TFLite", "LiteRT", 0.2),  # its weights are int8: LiteRT rounds what goes into each layer too
        ("keywords, int8 TFLite", "LiteRT", LEVEL),
        ("machine sound, float TFLite", "LiteRT", CLOSE * 100),
        ("machine sound, int8 TFLite", "LiteRT", 2.0),
        ("wake word, int8 TFLite", "LiteRT", LEVEL),
        ("sine, float TFLite", "LiteRT", CLOSE),
        ("sine, int8 TFLite", "LiteRT", LEVEL),
        ("speech, int8 TFLite", "LiteRT", LEVEL),
        ("microWakeWord, TFLite", "LiteRT", LEVEL),
        ("digits, LSTM TFLite", "LiteRT", CLOSE),
    ):
        scale = 0.0078125 if "LSTM" in name else 1.0  # of the specification
        yield _of_case(name, (peer, ALONE), apart=apart, scale=scale, quick=name.startswith("sine, int8"))
        if name in ("keywords, float TFLite", "machine sound, float TFLite"):
            yield _of_case(name, (peer, ALONE), apart=10.0 if "sound" in name else 0.6, quantize="int8")
    yield _of_case("CAN bus, XGBoost", ("XGBoost", "treelite", "tl2cgen"))
    yield _of_recipe("room, network", "room network", ("scikit-learn",))
    yield _of_recipe("room, network", "room network", ("scikit-learn",), quantize="int8", apart=0.2)
    yield _of_recipe("room, random forest", "room forest", SCIPY_PEERS)
    yield _of_recipe("room, scaler and histogram boosting", "room boosting", ("scikit-learn",))
    yield _of_recipe("motions, features and network", "motions", ("scikit-learn",))
    yield _of_recipe("machine temperature, isolation forest", "machine temperature", ("scikit-learn",))
    # Compilers take minutes over many trees, gcc over a hundred and LLVM over a thousand.
    for trees, peers in ((10, SCIPY_PEERS), (100, SCIPY_PEERS[:-1]), (1000, SCIPY_PEERS[:-1])):
        name = f"random forest, {trees:,} trees"
        yield Subject(name, _forest(trees), peers, "", quick=trees == 10, needs_data=False)
    for trees, others in ((10, BOOSTER_PEERS), (100, BOOSTER_PEERS[:-1]), (1000, BOOSTER_PEERS[:-2])):
        yield Subject(f"LightGBM, {trees:,} trees", _boosted(trees), others, "", needs_data=False)


def _of_case(name: str, peers: tuple[str, ...], *, quantize: str = "none", **more: Any) -> Subject:
    case = next(case for case in CASES if case.name == name)

    def prepare(data: Path, folder: Path) -> tuple[Path, Path, Samples, Samples]:
        model, calibration, asked = case.prepare(data, folder)
        assert calibration is not None
        assert asked is not None
        return model, model, calibration, asked

    return Subject(_with_form(name, quantize), prepare, peers, case.spec, quantize, **more)


def _of_recipe(name: str, recipe: str, peers: tuple[str, ...], *, quantize: str = "none", **more: Any) -> Subject:
    case = next(case for case in CASES if case.name == name)

    def prepare(data: Path, folder: Path) -> tuple[Path, Path, Samples, Samples]:
        fit, calibration, asked = RECIPES[recipe](data)
        return *_written(fit, folder, takes_windows=recipe == "motions"), calibration, asked

    return Subject(_with_form(name, quantize), prepare, peers, case.spec, quantize, **more)


def _with_form(name: str, quantize: str) -> str:
    return name if quantize == "none" else f"{name}, as {quantize}"


def _written(fit: Any, folder: Path, *, takes_windows: bool = False) -> tuple[Path, Path]:
    """An estimator for the converter, and for the peers."""
    import skops.io  # noqa: PLC0415 - heavy

    skops.io.dump(fit, folder / "model.skops")
    (folder / "model.pickle").write_bytes(pickle.dumps((fit, takes_windows)))
    return folder / "model.skops", folder / "model.pickle"


def _table() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """2,000 rows of 24 channels in three classes."""
    from sklearn.datasets import make_classification  # noqa: PLC0415 - heavy

    x, y = make_classification(2000, 24, n_informative=12, n_classes=3, random_state=0)
    return x.astype(np.float32), y.astype(np.int64)


def _forest(trees: int) -> Callable[[Path, Path], tuple[Path, Path, Samples, Samples]]:
    def prepare(_: Path, folder: Path) -> tuple[Path, Path, Samples, Samples]:
        from sklearn.ensemble import RandomForestClassifier  # noqa: PLC0415 - heavy

        x, y = _table()
        fit = RandomForestClassifier(trees, max_depth=8, random_state=0).fit(x, y)
        return *_written(fit, folder), (x, y), (x, y)

    return prepare


def _boosted(trees: int) -> Callable[[Path, Path], tuple[Path, Path, Samples, Samples]]:
    def prepare(_: Path, folder: Path) -> tuple[Path, Path, Samples, Samples]:
        import lightgbm  # noqa: PLC0415 - an extra

        x, classes = _table()
        y = (classes == 1).astype(np.int64)
        options = {"objective": "binary", "num_leaves": 31, "verbose": -1, "num_threads": 1, "learning_rate": 0.02}
        booster = lightgbm.train(options, lightgbm.Dataset(x, y), trees)
        path = folder / "model.txt"
        booster.save_model(path)
        return path, path, (x, y), (x, y)

    return prepare


def measure(
    subject: Subject, data: Path, folder: Path, python: str, *, quick: bool, say: Callable[[str], None]
) -> Line:
    """Convert a subject, compare the answers, and time everyone in turns.

    Raises:
        RuntimeError: the conversion was refused, or answers differ.
    """
    bundle, original, asked, manifest = prepared(subject, data, folder)
    line = Line(subject.name)
    core = process.cores()[1]
    with ExitStack() as stack:
        alive: dict[str, Answerer] = {}
        for kind in (RUNTIME, *subject.peers):
            program = sys.executable if kind == RUNTIME else python
            try:
                alive[kind] = Answerer(program, kind, bundle if kind == RUNTIME else original, asked, core=core)
            except LookupError as error:
                say(f"SKIPPED {kind}: expected the package {error}, found none: install it, or name --peers")
                continue
            except RuntimeError as error:
                if kind == RUNTIME:
                    raise
                say(f"SKIPPED {kind} for {subject.name}: {error}")
                continue
            stack.callback(alive[kind].close)
        _compare(subject, alive, folder, line)
        _take_turns("one", alive, line.one, 1, quick=quick)
        if not manifest.state:
            alive.pop(ALONE, None)
            with np.load(asked) as archive:
                _take_turns("many", alive, line.many, len(archive["window"]), quick=quick)
    return line


def prepared(subject: Subject, data: Path, folder: Path) -> tuple[Path, Path, Path, Manifest]:
    """The bundle, what the peers take, the windows that all are asked, and the bundle's manifest.

    Raises:
        RuntimeError: the conversion was refused.
    """
    model, original, calibration, rows = subject.prepare(data, folder)
    bundle, asked = folder / "bundle.onnx", folder / "asked.npz"
    _convert(subject, model, bundle, calibration, rows=rows)
    manifest = open_bundle(bundle).manifest
    window = np.asarray(rows[0][:WINDOWS], np.float32).reshape(-1, *manifest.input.tensor_shape)
    whole = manifest.input.dtype != "float32"
    np.savez(asked, window=window, whole=whole, task=manifest.task, scale=subject.scale)
    return bundle, original, asked, manifest


def _convert(subject: Subject, model: Path, bundle: Path, calibration: Samples, *, rows: Samples) -> None:
    arguments = ["build", str(model), "-o", str(bundle), "--quantize", subject.quantize]
    if subject.spec:
        bundle.with_suffix(".toml").write_text(subject.spec, encoding="utf-8")
        arguments += ["--spec", str(bundle.with_suffix(".toml"))]
    for name, (x, y) in (("calibration", calibration), ("evaluation", rows)):
        arrays: dict[str, Any] = {"x": x} if y is None else {"x": x, "y": y}
        np.savez(bundle.with_suffix(f".{name}.npz"), **arrays)
        arguments += [f"--{name}", str(bundle.with_suffix(f".{name}.npz"))]
    answered, wrong = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(answered), contextlib.redirect_stderr(wrong):
        if convert([*arguments, "--max-drop", "1" if subject.quantize != "none" else MAX_DROP]):
            raise RuntimeError(f"{subject.name}: {wrong.getvalue().strip()}")


def _compare(subject: Subject, alive: dict[str, Answerer], folder: Path, line: Line) -> None:
    found: dict[str, NDArray[Any]] = {}
    for kind, answerer in alive.items():
        path = folder / f"{kind}.npy"
        if kind == ALONE:
            continue
        answerer.ask(f"answers {path}")
        answer = np.load(path)
        found[kind] = answer.reshape(len(answer), -1)
    ours = found.pop(RUNTIME)
    for kind, answer in found.items():
        same = ours[:, -answer.shape[1] :]  # of two classes some libraries give the second alone
        line.apart[kind] = float(np.abs(same - answer).max())
        if line.apart[kind] > subject.apart:
            raise RuntimeError(
                f"{subject.name}: {kind}: expected the same answers within {subject.apart:g}, "
                f"found {line.apart[kind]:.3g} between them"
            )


def _take_turns(what: str, alive: dict[str, Answerer], times: dict[str, float], windows: int, *, quick: bool) -> None:
    turns, turn_ns = (QUICK_TURNS, QUICK_TURN_NS) if quick else (TURNS, TURN_NS)
    counts = {}
    for kind, answerer in alive.items():
        answerer.ask(f"{what} 3")
        counts[kind] = max(1, turn_ns // max(1, int(answerer.ask(f"{what} 3")) // 3))
    for _ in range(turns):
        for kind, answerer in alive.items():
            spent = int(answerer.ask(f"{what} {counts[kind]}")) / counts[kind] / windows / 1000
            times[kind] = min(times.get(kind, spent), spent)


HEAD = (
    "| model | one window: runtime | others | ratio | of many: runtime | others | ratio | apart |\n"
    "|---|---:|---|---:|---:|---|---:|---:|"
)


def row(line: Line) -> str:
    """A line in Markdown."""
    cells = [line.name]
    for times in (line.one, line.many):
        ratio = line.ratio(times) if times else None
        others = "; ".join(f"{name} {_short(time)}" for name, time in times.items() if name != RUNTIME)
        cells += [_short(times[RUNTIME]) if times else "", others, "" if ratio is None else f"{ratio:.2f}"]
    return "| " + " | ".join([*cells, f"{max(line.apart.values(), default=0):.1g}"]) + " |"


def summary(lines: list[Line]) -> str:
    """What the lines come to."""
    text = []
    for what, found in (("one window", [line.one for line in lines]), ("many windows", [line.many for line in lines])):
        pairs = zip(lines, found, strict=True)
        ratios = [ratio for line, times in pairs if times and (ratio := line.ratio(times)) is not None]
        if ratios:
            text.append(
                f"{what}: at most 1.0 of the best other in {sum(ratio <= 1.0 for ratio in ratios)} of {len(ratios)}, "
                f"at most 1.3 in {sum(ratio <= 1.3 for ratio in ratios)}, median {statistics.median(ratios):.2f}"
            )
    return "\n".join(text)


def _short(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"


def measure_all(python: str, results: Results) -> None:
    """For the table of `make bench`: the runtime and the best other, subject by subject."""
    lines, _ = run([], DATA, python, quick=False, say=results.note)
    for line in lines:
        for what, times in (("one window", line.one), ("many windows", line.many)):
            others = [time for name, time in times.items() if name not in (RUNTIME, ALONE)]
            if others:
                results.add(FIGURE.format(line.name, what), DAEMON, times[RUNTIME])
                results.add(FIGURE.format(line.name, what), BEST, min(others))


def run(
    names: list[str],
    data: Path,
    python: str,
    *,
    quick: bool,
    say: Callable[[str], None],
    done: Callable[[Line], object] = lambda _: None,
) -> tuple[list[Line], int]:
    """Every subject that is asked for, and how many failed; each line goes to `done` as well, when it is there."""
    lines, failed = [], 0
    for subject in subjects():
        if names and not any(name in subject.name for name in names):
            continue
        if quick and not names and not subject.quick:
            continue
        if subject.needs_data and not data.is_dir():
            say(f"SKIPPED {subject.name}: expected the folder of models and recordings at {data}, found none")
            continue
        with tempfile.TemporaryDirectory(prefix="edge-model-time-") as folder:
            try:
                lines.append(measure(subject, data, Path(folder), python, quick=quick, say=say))
                done(lines[-1])
            except RuntimeError as error:
                failed += 1
                say(str(error))
    return lines, failed


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_time", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="parts of names; every subject without any")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON", help="of an environment with more peers")
    parser.add_argument("--data", type=Path, default=DATA, help="default: ../shared/data")
    parser.add_argument("--quick", action="store_true", help="a few short turns of two subjects, for a look")
    parser.add_argument("--json", type=Path, help="where the figures go, besides the table")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    print(HEAD, flush=True)
    lines, failed = run(
        arguments.names, arguments.data, arguments.peers, quick=arguments.quick, say=say,
        done=lambda line: print(row(line), flush=True),
    )  # fmt: skip
    print(f"\n{summary(lines)}")
    if arguments.json:
        figures = [{"name": each.name, "one": each.one, "many": each.many} for each in lines]
        arguments.json.write_text(json.dumps(figures))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
