"""A model as its user would run it, asked and timed line by line: the runtime, LiteRT, scikit-learn, a tree compiler.

Usage: model_answer.py KIND MODEL ASKED.npz [COMMAND...]; without commands they are read from standard input.

    one COUNT      so many calls with one window each, over all windows in turn; prints nanoseconds of CPU
    many COUNT     so many calls with all windows; likewise
    answers PATH   the answers to all windows, as a file of numpy

The archive holds `window`, `whole` (its numbers are the integers that an int8 model takes), `task` and the `scale` that
windows are multiplied by. What takes a window to the answer of the task is part of a call, since the user of each has
to write it. One thread each. Exit code 3 means that a library is not installed; its name is printed.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402 - its threads are counted when it is imported

MISSING = 3
Ask = Callable[[Any], Any]


class Asked:
    """The windows and what is to be reported of them."""

    def __init__(self, path: str) -> None:
        with np.load(path) as archive:
            self.window = np.ascontiguousarray(archive["window"], np.float32)
            self.whole = bool(archive["whole"])
            self.task = str(archive["task"])
            self.scale = np.float32(archive["scale"])

    @property
    def rows(self) -> Any:
        """Windows of readings as rows of a table, as libraries of trees take them."""
        return self.window.reshape(len(self.window), -1)


def runtime(path: str, asked: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """The bundle, as the stream calls it."""
    from edge_runtime.bundle.model import Model  # noqa: PLC0415 - each library is there for some only
    from edge_runtime.bundle.open import open_bundle  # noqa: PLC0415
    from edge_runtime.readings import Carry  # noqa: PLC0415

    model = Model(open_bundle(Path(path)))
    carries: list[Carry] | None = [Carry()] if model.manifest.state else None
    part = {"classification": "scores", "regression": "value", "anomaly": "score"}[asked.task]

    def restart() -> None:
        if carries:
            carries[0] = Carry()

    return (
        lambda window: getattr(model.run_borrowed(window, carries), part),
        lambda windows: getattr(model.run(windows), part),
        restart,
    )


def litert(path: str, asked: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """LiteRT with its default delegate, XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    def prepare(count: int | None) -> tuple[Any, Ask]:
        interpreter = Interpreter(path, num_threads=1)
        found = interpreter.get_input_details()[0]
        if count is not None:
            interpreter.resize_tensor_input(found["index"], [count, *found["shape"][1:]])
        interpreter.allocate_tensors()
        given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
        shape, low = tuple(given["shape"]), np.iinfo(given["dtype"]).min if given["dtype"] != np.float32 else 0
        scale, zero = given["quantization"]
        out_scale, out_zero = result["quantization"]
        forgets = len(asked.window.shape) == 3 and any("LSTM" in op["op_name"] for op in interpreter._get_ops_details())  # noqa: SLF001 - no public way

        def call(windows: Any) -> Any:
            taken = windows.reshape(shape)
            if asked.scale != 1.0:
                taken = taken * asked.scale
            if given["dtype"] != np.float32:
                if not asked.whole:
                    taken = np.clip(np.rint(taken / scale) + zero, low, low + 255)
                taken = taken.astype(given["dtype"])
            if forgets:
                interpreter.reset_all_variables()
            interpreter.set_tensor(given["index"], taken)
            interpreter.invoke()
            answer = interpreter.get_tensor(result["index"])
            if result["dtype"] != np.float32:
                answer = (answer.astype(np.float32) - out_zero) * np.float32(out_scale)
            if asked.task == "anomaly":
                return np.mean((windows.reshape(answer.shape) - answer) ** 2, axis=1)
            return answer

        return interpreter, call

    interpreter, one = prepare(None)
    try:
        _, many = prepare(len(asked.window))
        many(asked.window)
    except (RuntimeError, ValueError):  # a file whose sizes are fixed is asked window by window
        windows = asked.window

        def many(_: Any) -> Any:
            return np.concatenate([one(windows[row : row + 1]) for row in range(len(windows))])

    return one, many, interpreter.reset_all_variables


def litert_alone(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """LiteRT's own calls, on an input that is rounded already, and without what follows: no answer, for comparison."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    interpreter = Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    taken = np.zeros(given["shape"], given["dtype"])
    place, output = given["index"], result["index"]

    def call(_window: Any) -> Any:
        interpreter.set_tensor(place, taken)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return call, lambda windows: [call(window) for window in windows], _nothing


def scikit_learn(path: str, asked: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """The estimator that was trained."""
    import sklearn  # noqa: F401, PLC0415 - what is unpickled needs it

    fit, takes_windows = pickle.loads(Path(path).read_bytes())  # noqa: S301 - the benchmark has just written it
    ask = {
        "classification": getattr(fit, "predict_proba", None),
        "regression": getattr(fit, "predict", None),
        "anomaly": lambda x: -fit.decision_function(x),
    }[asked.task]
    assert ask is not None
    return _of_rows(ask) if not takes_windows else (ask, ask, _nothing)


def xgboost(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """XGBoost's own prediction, past its DMatrix."""
    import xgboost  # noqa: PLC0415

    booster = xgboost.Booster({"nthread": 1}, model_file=path)
    return _of_rows(booster.inplace_predict)


def lightgbm(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """LightGBM's own prediction."""
    import lightgbm  # noqa: PLC0415

    booster = lightgbm.Booster(model_file=path)
    return _of_rows(lambda x: booster.predict(x, num_threads=1))


def lleaves(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """LightGBM's trees, compiled by LLVM."""
    import lleaves  # noqa: PLC0415

    model = lleaves.Model(model_file=path)
    model.compile(cache=f"{path}.lleaves")
    return _of_rows(lambda x: model.predict(x, n_jobs=1))


def treelite(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """Treelite's general predictor."""
    import treelite  # noqa: PLC0415

    model = _treelite_model(treelite, path)
    return _of_rows(lambda x: treelite.gtil.predict(model, x, nthread=1)[:, 0])


def tl2cgen(path: str, _: Asked) -> tuple[Ask, Ask, Callable[[], None]]:
    """Trees as C, compiled by gcc."""
    import tl2cgen  # noqa: PLC0415
    import treelite  # noqa: PLC0415

    library = Path(f"{path}.so")
    if not library.exists():
        model = _treelite_model(treelite, path)
        tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={"parallel_comp": 64}, nthread=1)
    predictor = tl2cgen.Predictor(library, nthread=1)
    return _of_rows(lambda x: predictor.predict(tl2cgen.DMatrix(x))[:, 0])


def _treelite_model(treelite: Any, path: str) -> Any:
    if path.endswith(".json"):
        return treelite.frontend.load_xgboost_model(path)
    if path.endswith(".txt"):
        return treelite.frontend.load_lightgbm_model(path)
    return treelite.sklearn.import_model(pickle.loads(Path(path).read_bytes())[0])  # noqa: S301 - as above


def _nothing() -> None:
    """For models that keep nothing from call to call."""


def _of_rows(ask: Ask) -> tuple[Ask, Ask, Callable[[], None]]:
    def call(windows: Any) -> Any:
        return ask(windows.reshape(len(windows), -1))

    return call, call, _nothing


KINDS = {
    "runtime": runtime, "LiteRT": litert, "LiteRT, its call alone": litert_alone, "scikit-learn": scikit_learn,
    "XGBoost": xgboost, "LightGBM": lightgbm, "lleaves": lleaves, "treelite": treelite, "tl2cgen": tl2cgen,
}  # fmt: skip


def main() -> int:
    """Answer commands."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    kind, path, asked = sys.argv[1], sys.argv[2], Asked(sys.argv[3])
    try:
        one, many, restart = KINDS[kind](path, asked)
    except ModuleNotFoundError as error:
        print(error.name, file=answers)
        return MISSING
    windows = [asked.window[row : row + 1] for row in range(len(asked.window))]
    print("ready", file=answers)
    for line in sys.argv[4:] or sys.stdin:
        command, _, argument = line.strip().partition(" ")
        if command == "answers":
            restart()
            np.save(argument, np.concatenate([np.array(one(window), np.float64) for window in windows]))
            print("saved", file=answers)
            continue
        began = time.process_time_ns()
        if command == "many":
            for _ in range(int(argument)):
                many(asked.window)
        else:
            for number in range(int(argument)):
                one(windows[number % len(windows)])
        print(time.process_time_ns() - began, file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
