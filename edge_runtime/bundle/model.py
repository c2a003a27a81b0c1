"""Windows -> scores: the only caller of onnxruntime, for the stream, on demand and in batch alike.

Guarantee: the scores of a window are the same bits for every way in and every batch. Therefore a model whose kernels
change the last bits with the batch size (`batch_invariant` false in its manifest) runs one window at a time, and so
does one with a fixed batch axis.

onnxruntime is configured for a small device: one thread, no spinning, no arena, CPU only. int8 products are exact on
every processor (`int8.py`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.bundle.int8_operators import WHOLE_PRODUCTS, Int8
from edge_runtime.bundle.manifest import INPUT_NAME, Manifest, output_ports
from edge_runtime.bundle.open import Bundle
from edge_runtime.errors import BundleError, EdgeError
from edge_runtime.readings import Carry, Floats
from edge_runtime.system.hashing import sha256
from edge_runtime.system.log import fields, get_logger

_ONNX_TYPES = {"float32": "tensor(float)", "int64": "tensor(int64)"}
_NO_STATES: dict[str, Floats] = {}
GRAPH_LEVEL = "ORT_ENABLE_ALL"  # the one option that decides how onnxruntime optimises a graph (`optimised_copy.py`)
_log = get_logger("model")
FEW_NUMBERS = 16  # up to so many numbers, a Python loop is cheaper than numpy's calls


class ModelError(EdgeError):
    """The model failed on these windows; the same input is not tried again."""


class ModelOptions(msgspec.Struct, frozen=True):
    """The settings of onnxruntime for a model.

    Attributes:
        threads: intra-op threads; 1 leaves the other cores to the rest of the device.
        max_batch: the most windows in one call, which bounds memory.
        arena: True lets onnxruntime keep freed memory for itself: faster for large models, never smaller.
    """

    threads: int = 1
    max_batch: int = 256
    arena: bool = False


class Scores(msgspec.Struct, eq=False):
    """A model's answers to n windows; the task decides which fields are set.

    Attributes:
        label: classification, int64 `[n]`, an index into the manifest's labels.
        scores: classification, float32 `[n, classes]`.
        value: regression, float32 `[n, targets]`.
        score: anomaly, float32 `[n]`.
        tensors: tensor, embedding, detection and multilabel, `[n, *shape]` by the names of `output_ports`.
    """

    label: NDArray[np.int64] | None = None
    scores: Floats | None = None
    value: Floats | None = None
    score: Floats | None = None
    tensors: dict[str, NDArray[Any]] | None = None

    @staticmethod
    def of(arrays: dict[str, Any], *, named: bool) -> "Scores":
        """The outputs of a graph; `named` for the tasks whose outputs are `tensors`."""
        return Scores(tensors=arrays) if named else Scores(**arrays)

    @property
    def is_named(self) -> bool:
        """Whether these are `tensors`."""
        return self.tensors is not None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The set fields, by name."""
        if self.tensors is not None:
            return self.tensors
        return {name: found for name in _FIELDS if (found := getattr(self, name)) is not None}

    def rows(self, which: slice | list[int]) -> "Scores":
        """The answers to some of the windows."""
        return Scores.of({name: found[which] for name, found in self.arrays().items()}, named=self.is_named)

    @staticmethod
    def joined(parts: Sequence["Scores"]) -> "Scores":
        """Join the answers to consecutive windows."""
        arrays = [part.arrays() for part in parts]
        joined = {name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]}
        return Scores.of(joined, named=parts[0].is_named)

    def finite_rows(self) -> NDArray[np.bool_] | None:
        """None when every number is finite, else `[n]`, False for the rows that must not be published."""
        if self.tensors is not None:
            parts = [np.isfinite(found).reshape(len(found), -1).all(axis=1) for found in self.tensors.values()]
            good: NDArray[np.bool_] = np.logical_and.reduce(parts)
            return None if good.all() else good
        numbers = self.scores if self.scores is not None else self.value if self.value is not None else self.score
        assert numbers is not None
        if numbers.size <= FEW_NUMBERS and math.isfinite(sum(numbers.ravel().tolist())):
            return None
        finite = np.isfinite(numbers)
        if finite.all():
            return None
        return finite if finite.ndim == 1 else np.logical_and.reduce(finite, axis=1)


_FIELDS = ("label", "scores", "value", "score")
NAMED_TASKS = ("tensor", "embedding", "detection", "multilabel")  # whose answers are `Scores.tensors`


MOST_ANSWER_BYTES = 1 << 24  # of one call; a detector's 84 x 8400 takes 3 MB a window


def row_bytes(manifest: Manifest) -> int:
    """The bytes of one window or of its answer, the larger of the two."""
    sizes = [math.prod(port.shape) * 4 for port in output_ports(manifest).values()]
    return max(4 * math.prod(manifest.input.tensor_shape), sum(sizes), 1)


class Model:
    """A bundle that is loaded and ready to run. Not safe for two threads at a time.

    Args:
        bundle: the bundle, opened.
        options: how to run it.
        optimised: the path of its optimised copy, already checked (`optimised_copy.py`), to be loaded in its place.

    Raises:
        BundleError: the file changed since it was checked, or onnxruntime refuses it.
    """

    def __init__(
        self,
        bundle: Bundle,
        options: ModelOptions = ModelOptions(),  # noqa: B008 - frozen
        *,
        optimised: str | None = None,
    ) -> None:
        self.bundle = bundle
        self.manifest = bundle.manifest
        self.is_optimised = optimised is not None
        self._session = _open_session(bundle, options) if optimised is None else _open_copy(bundle, options, optimised)
        self._run_session = _named_call(self._session)
        self._outputs = list(output_ports(self.manifest))
        self._named = self.manifest.task in NAMED_TASKS
        self._states = self.manifest.state
        self._fetches = self._outputs + [state.output for state in self._states]
        alone = not (self.manifest.batch_invariant and self.manifest.batch_free)
        self._max_batch = 1 if alone else max(1, min(options.max_batch, MOST_ANSWER_BYTES // row_bytes(self.manifest)))
        self._single = _Single.of(self._session, self.manifest)

    def run(self, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """Score `[n, *shape]` windows, n of 1 or more.

        Args:
            windows: float32, C-contiguous.
            carries: for a recurrent model the carry of each window's stream, in order of time: holds the state before
                and after the window. None starts every window from the zero state.

        Raises:
            ModelError: onnxruntime failed, or its answer does not match the manifest.
        """
        try:
            return self._run(windows, carries)
        except ModelError:
            raise
        except Exception as error:  # an unusual model can raise any exception of numpy; callers handle one kind
            raise ModelError(f"{self.manifest.name}: {type(error).__name__}: {_first_line(error)}") from error

    def run_borrowed(self, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """As `run`, but the arrays are overwritten by the next call: for callers that do not keep them.

        A single window, the usual case on a device that is not busy, goes through bound buffers.
        """
        single = self._single
        if single is None or windows.shape != single.shape:
            return self.run(windows, carries)
        try:
            return single.run(windows, carries)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{self.manifest.name}: {_first_line(error)}") from error

    def run_recorded(self, windows: Floats, carries: Sequence[Carry] | None = None) -> Scores:
        """As `run`, for many windows of a recording; single windows go through buffers that are bound once.

        Raises:
            ModelError: see `run`.
        """
        if self._max_batch > 1 or self._single is None or self._states or len(windows) < 2:
            return self.run(windows, carries)
        try:
            return self._single.run_each(windows)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{self.manifest.name}: {_first_line(error)}") from error

    def _run(self, windows: Floats, carries: Sequence[Carry] | None) -> Scores:
        if self._states:
            parts = self._run_recurrent(windows, carries)
        elif len(windows) <= self._max_batch:
            parts = [self._call(windows, _NO_STATES)]
        else:
            step = self._max_batch
            parts = [self._call(windows[at : at + step], _NO_STATES) for at in range(0, len(windows), step)]
        count = len(self._outputs)
        merged = parts[0] if len(parts) == 1 else [np.concatenate([part[i] for part in parts]) for i in range(count)]
        if len(merged[0]) != len(windows):
            raise ModelError(f"{self.manifest.name}: expected {len(windows)} answers, found {len(merged[0])}")
        return Scores.of(dict(zip(self._outputs, merged, strict=True)), named=self._named)

    def _call(self, windows: Floats, states: dict[str, Floats]) -> list[Any]:
        try:
            return self._run_session(self._fetches, {INPUT_NAME: windows, **states})
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise ModelError(f"{self.manifest.name}: {_first_line(error)}") from error

    def _run_recurrent(self, windows: Floats, carries: Sequence[Carry] | None) -> list[list[Any]]:
        """One call for each round, which holds at most one window of each stream, so that states stay in order."""
        if carries is None:
            carries = [Carry() for _ in range(len(windows))]
        before = [carry.parts for carry in carries]
        try:
            return self._run_rounds(windows, carries)
        except ModelError:
            for carry, parts in zip(carries, before, strict=True):
                carry.parts = parts  # the states before the call, so that the caller may try the windows one by one
            raise

    def _run_rounds(self, windows: Floats, carries: Sequence[Carry]) -> list[list[Any]]:
        answers: list[list[Any]] = [[] for _ in range(len(windows))]
        waiting = list(range(len(windows)))
        while waiting:
            rows: list[int] = []
            seen: set[int] = set()
            later: list[int] = []
            for row in waiting:
                taken = id(carries[row]) in seen or len(rows) >= self._max_batch
                (later if taken else rows).append(row)
                seen.add(id(carries[row]))
            self._run_round(windows, carries, rows, answers)
            waiting = later
        return answers

    def _run_round(self, windows: Floats, carries: Sequence[Carry], rows: list[int], answers: list[list[Any]]) -> None:
        feeds: dict[str, Floats] = {}
        for index, state in enumerate(self._states):
            fed = np.zeros((len(rows), *state.shape), np.float32)
            for place, row in enumerate(rows):
                held = carries[row].parts
                if held is not None:
                    fed[place] = held[index]
            feeds[state.input] = fed
        found = self._call(np.ascontiguousarray(windows[rows]), feeds)
        outputs, states = found[: len(self._outputs)], found[len(self._outputs) :]
        for place, row in enumerate(rows):
            answers[row] = [output[place : place + 1] for output in outputs]
            carries[row].parts = [state[place].copy() for state in states]


class _Place(NamedTuple):
    """Where a state stands in a block, in numbers of float32."""

    start: int
    stop: int
    shape: tuple[int, ...]


class PackedStates(Sequence[Floats]):
    """The states of a stream, views `[*shape]` of one block, so that a call copies all of them at once.

    Args:
        block: float32 `[numbers]`.
        layout: the place of each state.
    """

    __slots__ = ("block", "layout")

    def __init__(self, block: Floats, layout: tuple[_Place, ...]) -> None:
        self.block, self.layout = block, layout

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, index: Any) -> Any:
        """A state; its numbers are those of the block.

        Raises:
            IndexError: there are fewer.
        """
        start, stop, shape = self.layout[index]
        return self.block[start:stop].reshape(shape)


_STEP = 16  # states begin at multiples of so many numbers, 64 bytes


def _layout_of(shapes: Sequence[tuple[int, ...]]) -> tuple[_Place, ...]:
    places, start = [], 0
    for shape in shapes:
        places.append(_Place(start, start + math.prod(shape), shape))
        start = -(-places[-1].stop // _STEP) * _STEP
    return tuple(places)


class _Single:
    """One window through buffers that were bound once, without allocations and lookups by name.

    When a paced device wakes up its caches are cold, and the shorter way saves a quarter of a call; of a recurrent
    model, whose states are looked up by name too, it saves half.
    """

    def __init__(self, session: Any, manifest: Manifest) -> None:
        binding = session.io_binding()
        self.shape = (1, *manifest.input.tensor_shape)
        self._window = np.zeros(self.shape, np.float32)
        self._bind(binding.bind_input, INPUT_NAME, self._window)
        buffers: dict[str, Any] = {}
        for name, port in output_ports(manifest).items():
            buffers[name] = np.zeros((1, *port.shape), port.dtype)
            self._bind(binding.bind_output, name, buffers[name])
        self._scores = Scores.of(buffers, named=manifest.task in NAMED_TASKS)
        self._layout = _layout_of([state.shape for state in manifest.state])
        self._before, self._after = (
            PackedStates(np.zeros(self._layout[-1].stop if self._layout else 0, np.float32), self._layout)
            for _ in range(2)
        )
        for state, before, after in zip(manifest.state, self._before, self._after, strict=True):
            self._bind(binding.bind_input, state.input, before[np.newaxis])
            self._bind(binding.bind_output, state.output, after[np.newaxis])
        self._call = _bound_call(session, binding)

    @classmethod
    def of(cls, session: Any, manifest: Manifest) -> "_Single | None":
        """None where the shapes are not known for sure."""
        ports = (*session.get_inputs(), *session.get_outputs())
        found = {port.name: (port.type, port.shape[1:]) for port in ports}
        wanted = {name: (_ONNX_TYPES[port.dtype], list(port.shape)) for name, port in output_ports(manifest).items()}
        for state in manifest.state:
            wanted[state.input] = wanted[state.output] = (_ONNX_TYPES["float32"], list(state.shape))
        return cls(session, manifest) if all(found.get(name) == port for name, port in wanted.items()) else None

    def run(self, window: Floats, carries: Sequence[Carry] | None) -> Scores:
        self._window[...] = window
        if not self._layout:
            self._call()
            return self._scores
        self._begin(carries[0].parts if carries else None)
        self._call()
        if carries:
            carries[0].parts = PackedStates(self._after.block.copy(), self._layout)
        return self._scores

    def _begin(self, held: Sequence[Floats] | None) -> None:
        """The states as the call before left them, or zeros."""
        if held is None:
            self._before.block[...] = 0.0
        elif isinstance(held, PackedStates) and held.layout == self._layout:
            self._before.block[...] = held.block
        else:  # restored from a file, sent by a client, or left by a call with many windows
            for state, part in zip(self._before, held, strict=True):
                state[...] = part

    def run_each(self, windows: Floats) -> Scores:
        """Window by window, for a model whose kernels change the last bits with the batch size.

        Bytes are copied by `memoryview`, in a third of the time of numpy's assignments.
        """
        borrowed = self._scores.arrays()
        found = {name: np.empty((len(windows), *array.shape[1:]), array.dtype) for name, array in borrowed.items()}
        pairs = [(_bytes_of(found[name]), _bytes_of(array), array.nbytes) for name, array in borrowed.items()]
        source, window, size = _bytes_of(np.ascontiguousarray(windows)), _bytes_of(self._window), self._window.nbytes
        for row in range(len(windows)):
            window[:] = source[row * size : row * size + size]
            self._call()
            for into, array, count in pairs:
                into[row * count : row * count + count] = array
        return Scores.of(found, named=self._scores.is_named)

    @staticmethod
    def _bind(bind: Any, name: str, buffer: NDArray[Any]) -> None:
        bind(name, "cpu", 0, buffer.dtype.type, buffer.shape, buffer.ctypes.data)


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _bound_call(session: Any, binding: Any) -> Callable[[], object]:
    """Run a session over bound buffers.

    onnxruntime's own wrapper checks for GPU graphs first, and creates run options for each call: together a quarter of
    a cold call. With another internal structure of onnxruntime, its wrapper is called.
    """
    import onnxruntime  # noqa: PLC0415 - see `_open_session`

    inner, bound = getattr(session, "_sess", None), getattr(binding, "_iobinding", None)
    if inner is None or bound is None:
        return partial(session.run_with_iobinding, binding)
    return partial(inner.run_with_iobinding, bound, onnxruntime.RunOptions())


def _named_call(session: Any) -> Callable[[list[str], dict[str, Floats]], list[Any]]:
    """Run a session with names, past the wrapper as `_bound_call` does: it looks the names up that the model has."""
    import onnxruntime  # noqa: PLC0415 - see `_open_session`

    inner = getattr(session, "_sess", None)
    if inner is None:
        return session.run  # type: ignore[no-any-return]
    options = onnxruntime.RunOptions()
    return lambda fetches, feeds: inner.run(fetches, feeds, options)


def read_unchanged(bundle: Bundle) -> bytes:
    """The bytes of the bundle's file.

    Raises:
        BundleError: they are not those that were checked.
    """
    data = bundle.path.read_bytes()
    if sha256(data) != bundle.digest:
        raise BundleError(f"{bundle.path}: expected the file that was checked, found another: install it again")
    return data


def session_settings(options: ModelOptions, int8: Int8 = "none") -> Any:
    """The `SessionOptions` for a bundle's own graph; `int8` is what the bundle's facts hold."""
    import onnxruntime  # noqa: PLC0415 - slow to import: only when a model is really loaded

    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, GRAPH_LEVEL)
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = options.arena
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if int8 != "none":
        from edge_runtime.bundle.int8 import set_exact  # noqa: PLC0415 - only where a model computes in int8

        set_exact(settings, int8)
    return settings


def _saturates() -> bool:
    from edge_runtime.bundle.int8 import saturates  # noqa: PLC0415 - only where a model computes in int8

    return saturates()


def _open_session(bundle: Bundle, options: ModelOptions) -> Any:
    facts = bundle.facts
    if facts.int8 == "shared" and _saturates():
        whole = any(operator in WHOLE_PRODUCTS for _, operator in facts.operators)
        effect = "int8 products saturate on this processor" if whole else "int8 products run unfused, slower"
        _log.warning(f"{effect}: convert the model again with this release", extra=fields(bundle=bundle.manifest.name))
    settings = session_settings(options, facts.int8)
    return make_session(read_unchanged(bundle), settings, str(bundle.path))


def _open_copy(bundle: Bundle, options: ModelOptions, copy: str) -> Any:
    import onnxruntime  # noqa: PLC0415 - as above

    settings = session_settings(options, bundle.facts.int8)
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # nothing is left to do
    return make_session(copy, settings, f"the optimised copy of {bundle.path}")


def make_session(model: bytes | str, settings: Any, place: str) -> Any:
    """An onnxruntime session on the processor alone.

    Args:
        model: the bytes of the file, or its path.
        settings: of `session_settings`.
        place: its name in messages.

    Raises:
        BundleError: onnxruntime refuses the model.
    """
    import onnxruntime  # noqa: PLC0415 - as above

    try:
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        raise BundleError(f"{place}: onnxruntime {onnxruntime.__version__} refuses it: {_first_line(error)}") from error
    # It keeps the bytes of the whole file to recreate itself for other hardware, which never happens here.
    session._model_bytes = None  # noqa: SLF001 - where another release calls it otherwise, memory is all that is lost
    return session


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
