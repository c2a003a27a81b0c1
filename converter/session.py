"""onnxruntime sessions of the converter, for the comparison, the search and the golden rows.

Guarantee: int8 products are computed exactly, on every processor (`edge_runtime/bundle/int8.py`). Every session of the
converter is created here, except those of onnxruntime's calibrators, which fuse nothing and so are exact too.
"""

import contextlib
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.graph.build import serialize
from converter.graph.int8 import separate
from converter.load.source import Answer
from edge_runtime.bundle.int8 import set_exact
from edge_runtime.bundle.int8_operators import OPERANDS
from edge_runtime.bundle.manifest import INPUT_NAME, State
from edge_runtime.readings import Floats

CHUNK = 256
_WARM_UP, _TIMED = 10, 50
_ROUNDS, _CALLS = 5, 7  # of a comparison in turns, and calls in each


def session_of(model: bytes) -> Any:
    """A single-threaded session with exact int8 products, as on a small device, without log output."""
    import onnxruntime  # noqa: PLC0415 - heavy

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if any(name.encode() in model for name in OPERANDS):  # the search for a better one costs time without effect
        graph = onnx.load_model_from_string(model)
        if separate(graph):
            model = serialize(graph)
        set_exact(options, "apart")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(session: Any, windows: Floats, batch: int = CHUNK, states: dict[str, NDArray[Any]] | None = None) -> Answer:
    """Answer windows in batches; states start at zero for every window."""
    names = [output.name for output in session.get_outputs()]
    wanted = names[: len(names) - len(states or {})]  # the following outputs are states
    parts: list[list[NDArray[Any]]] = []
    for start in range(0, len(windows), batch):
        piece = windows[start : start + batch]
        feeds: dict[str, NDArray[Any]] = {INPUT_NAME: piece}
        for name, state in (states or {}).items():
            feeds[name] = np.zeros((len(piece), *state.shape), dtype=np.float32)
        parts.append(session.run(wanted, feeds))
    joined = {name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(wanted)}
    return Answer.of(joined)


def run_stream(session: Any, windows: Floats, states: Sequence[State]) -> tuple[Answer, dict[str, NDArray[Any]]]:
    """Answers to consecutive windows, with states handed on as on a device, and the states after each window."""
    names = [output.name for output in session.get_outputs()]
    wanted = names[: len(names) - len(states)]
    held = {state.input: np.zeros((1, *state.shape), dtype=np.float32) for state in states}
    parts: list[list[NDArray[Any]]] = []
    passed: dict[str, list[NDArray[Any]]] = {state.input: [] for state in states}
    for row in range(len(windows)):
        found = dict(zip(names, session.run(names, {INPUT_NAME: windows[row : row + 1], **held}), strict=True))
        held = {state.input: found[state.output] for state in states}
        for name, value in held.items():
            passed[name].append(value)
        parts.append([found[name] for name in wanted])
    answer = Answer.of({name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(wanted)})
    return answer, {name: np.concatenate(values) for name, values in passed.items()}


def start_of(states: Sequence[State]) -> dict[str, NDArray[Any]]:
    """The states of a recurrent model at the start of a stream: zeros, without the batch axis."""
    return {state.input: np.zeros(state.shape, dtype=np.float32) for state in states}


@dataclass(frozen=True, slots=True)
class Speed:
    """The time of one prediction at batch 1 on this machine, in microseconds.

    Attributes:
        wall_us: the median time.
        cpu_us: the mean processor time, which other work on the machine does not lengthen.
        least_us: the shortest time, which varies little from run to run; by default that of the processor.
    """

    wall_us: float
    cpu_us: float
    least_us: float | None = None

    @property
    def steady_us(self) -> float:
        """The figure to compare forms by."""
        return self.cpu_us if self.least_us is None else self.least_us


def speed_of(session: Any, window: Floats, states: dict[str, NDArray[Any]] | None = None) -> Speed:
    """Measure it."""
    times = []
    for _ in range(_WARM_UP):
        run(session, window, 1, states)
    cpu = time.process_time()
    for _ in range(_TIMED):
        start = time.perf_counter()
        run(session, window, 1, states)
        times.append(time.perf_counter() - start)
    cpu_us = (time.process_time() - cpu) / _TIMED * 1e6
    return Speed(statistics.median(times) * 1e6, cpu_us, min(times) * 1e6)


def slowness_of(base: Any, form: Any, window: Floats, states: dict[str, NDArray[Any]] | None, *, near: Any) -> float:
    """The time of one session relative to another, measured in turns, so that both run under the same load.

    The median of the rounds' ratios; four times as many rounds where `near` returns True.

    Args:
        base: the session to compare with.
        form: the other.
        window: one.
        states: at the start of a stream.
        near: whether a ratio is so near a limit that more rounds are needed.
    """
    ratios: list[float] = []
    for rounds in (_ROUNDS, 3 * _ROUNDS):
        for _ in range(rounds):
            times = [_shortest(session, window, states) for session in (base, form)]
            ratios.append(times[1] / max(times[0], 1e-9))
        if not near(statistics.median(ratios)):
            break
    return statistics.median(ratios)


def _shortest(session: Any, window: Floats, states: dict[str, NDArray[Any]] | None) -> float:
    """The shortest time of a few calls, in seconds; other work only lengthens a call."""
    least = float("inf")
    for _ in range(_CALLS):
        start = time.perf_counter()
        run(session, window, 1, states)
        least = min(least, time.perf_counter() - start)
    return least


def processor() -> str:
    """The name of this machine's processor."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
