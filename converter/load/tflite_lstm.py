"""TFLite's LSTM on floats as ONNX: the `LSTM` operator where that gives the same, else a node or more for each step.

TFLite clips the cells after each step, at 10 as exporters write it; ONNX does not. So the operator runs as if nothing
was clipped, and a second one gives the cells of that run. Where all of a window's cells stayed below the clip, clipping
would have changed nothing, and the outputs are right; else the window takes single steps with a `Clip` between them.
Each window's own cells decide, so that its answer does not depend on the others of a batch.

28 steps of 20 units take 31 us a window, 157 where a cell is clipped.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from converter.load.tflite_network import Network
from edge_runtime.errors import CommandError

_TANH = 4  # of TFLite's ActivationFunctionType
_MOST_UNITS = 64  # with more, computing the cells again costs as much as single steps
_FLAT = 9.1  # from here on tanh is 1 in float32: an output is the same whether its cell is clipped or not
_MARGIN = 0.01  # the cells are computed with another order of sums; both are some 1e-5 from the exact ones
_OPEN = 100.0  # a gate's bias that opens it fully: its sigmoid is 1 in float32


class _Weights(NamedTuple):
    """Weights `[units, inputs]`, `[units, units]`, biases `[units]`, each of the gates enter, forget, cell, output."""

    fed: list[NDArray[Any]]
    before: list[NDArray[Any]]
    bias: list[NDArray[Any]]


class _Lstm(NamedTuple):
    """What an operator computes: its weights, the steps of a window, and where cells are clipped (0: nowhere)."""

    weights: _Weights
    length: int
    clip: float

    @property
    def units(self) -> int:
        return int(self.weights.fed[0].shape[0])


def lstm(network: Network, operator: Any) -> None:
    """`UNIDIRECTIONAL_SEQUENCE_LSTM` on floats.

    Windows of several readings begin with a zero state, as in training; windows of one reading pass the state on.
    """
    x = int(operator.inputs[0])
    cell = _Lstm(_weights(network, operator), network.shape(x)[1], float(operator.builtinOptions.cellClip))
    whole = _kept_step(network, operator, cell) if cell.length == 1 else _speculated(network, network.value(x), cell)
    network.give(operator.outputs[0], whole)


def _weights(network: Network, operator: Any) -> _Weights:
    """The constants of an operator.

    Raises:
        CommandError: it is of a kind without ONNX form.
    """
    options, inputs = operator.builtinOptions, [int(index) for index in operator.inputs]
    places = [*inputs[1:9], *inputs[12:16]]
    present = [index for index in places if index >= 0]
    if not network.is_float(inputs[0]) or not all(map(network.is_float, present)):
        raise CommandError(f"{network.place}: no ONNX form is known for an LSTM of integers: export it in float32")
    if min(places) < 0 or max(inputs[9:12]) >= 0 or max(inputs[16:18]) >= 0 or max(inputs[20:24], default=-1) >= 0:
        raise CommandError(
            f"{network.place}: no ONNX form is known for an LSTM with peepholes, projection, coupled gates or "
            "normalised layers"
        )
    if options.timeMajor or options.fusedActivationFunction != _TANH or options.projClip:
        raise CommandError(f"{network.place}: expected an LSTM with tanh and batches first, found another kind")
    table = [network.array(index) for index in places]
    found = [array for array in table if array is not None]
    if len(found) < len(table):
        raise CommandError(f"{network.place}: expected constant weights, found computed ones")
    return _Weights(found[:4], found[4:8], found[8:])


def _speculated(network: Network, x: str, lstm: _Lstm) -> str:
    """The output of every step `[N, length, units]` by the `LSTM` operator, unless a cell of the window is clipped."""
    by_step = network.node("Transpose", x, perm=[1, 0, 2])
    constants = [network.constant(part[None]) for part in _of_onnx(lstm.weights)]

    def clipped() -> str:
        if lstm.clip < _FLAT:
            return _unrolled(network, x, lstm)
        return _single_steps(network, by_step, constants, lstm)

    is_short = lstm.clip <= 0 or lstm.length <= int(lstm.clip)  # cells begin at 0, and a step adds at most 1
    if not is_short and lstm.units > _MOST_UNITS:
        return clipped()
    output = network.node("LSTM", by_step, *constants, hidden_size=lstm.units)
    output = network.node("Squeeze", output, network.constant([1], np.int64))
    whole = network.node("Transpose", output, perm=[1, 0, 2])
    if is_short:
        return whole
    cells = network.node("Abs", _cells(network, by_step, output, lstm.weights))
    largest = network.node("ReduceMax", cells, axes=[0, 1, 3], keepdims=0)
    bound = network.constant(lstm.clip - _MARGIN)

    def by_window() -> str:
        is_free = network.node("Unsqueeze", network.node("Less", largest, bound), network.constant([1, 2], np.int64))
        return network.node("Where", is_free, whole, clipped())

    all_free = network.node("Less", network.node("ReduceMax", largest, axes=[0], keepdims=0), bound)
    return network.choice(all_free, lambda: network.node("Identity", whole), by_window)


def _single_steps(network: Network, by_step: str, constants: list[str], lstm: _Lstm) -> str:
    """The output of every step `[N, length, units]`, by an `LSTM` operator for each, and the cells clipped between."""
    limits = network.constant(-lstm.clip), network.constant(lstm.clip)
    fed = network.nodes("Split", lstm.length, by_step, network.constant([1] * lstm.length, np.int64), axis=0)
    state: list[str] = []
    steps = []
    for given in fed:
        before = ["", *state] if state else []  # "": every sequence is whole
        _, output, cell = network.nodes("LSTM", 3, given, *constants, *before, hidden_size=lstm.units)
        state = [output, network.node("Clip", cell, *limits)]
        steps.append(output)
    return network.node("Transpose", network.node("Concat", *steps, axis=0), perm=[1, 0, 2])


def _cells(network: Network, by_step: str, output: str, weights: _Weights) -> str:
    """The cells after every step `[length, 1, N, units]`, which the `LSTM` operator keeps to itself but for the last.

    Another one computes them from the outputs that are known by now: it takes the output before each step as input,
    leaves its own out, and has an open output gate and no tanh, so that it gives out its cells.
    """
    units = int(weights.fed[0].shape[0])
    before = network.node("Pad", output, network.constant([1, 0, 0, -1, 0, 0], np.int64))
    fed = network.node("Concat", by_step, before, axis=2)
    tables = [np.concatenate([one, other], axis=1) for one, other in zip(weights.fed, weights.before, strict=True)]
    shown = _Weights(
        [*tables[:3], np.zeros_like(tables[3])],
        [np.zeros_like(table) for table in weights.before],
        [*weights.bias[:3], np.full(units, _OPEN, np.float32)],
    )
    constants = [network.constant(part[None]) for part in _of_onnx(shown)]
    return network.node("LSTM", fed, *constants, hidden_size=units, activations=["Sigmoid", "Tanh", "Affine"],
                        activation_alpha=[1.0], activation_beta=[0.0])  # fmt: skip


def _of_onnx(weights: _Weights) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Weights and biases with the gates enter, output, forget and cell; the second half of the biases is zero."""
    tables = []
    for enter, forget, cell, output in weights:
        tables.append(np.concatenate([enter, output, forget, cell]))
    fed, before, bias = tables
    return fed, before, np.concatenate([bias, np.zeros_like(bias)])


def _unrolled(network: Network, x: str, lstm: _Lstm) -> str:
    """The output of every step `[N, length, units]`, by nodes for each step."""
    weights, length, columns = lstm.weights, lstm.length, 4 * lstm.units
    gates = network.node("MatMul", x, network.constant(_side_by_side(weights.fed).T))
    gates = network.node("Add", gates, network.constant(_side_by_side(weights.bias)))
    flat = network.node("Reshape", gates, network.constant([-1, length * columns], np.int64))
    fed = network.nodes("Split", length, flat, network.constant([columns] * length, np.int64), axis=1)
    from_before = network.constant(_side_by_side(weights.before).T)
    before = cell = ""
    steps = []
    for given in fed:
        before, cell = _step(network, given, from_before, lstm.units, state=(before, cell), clip=lstm.clip)
        steps.append(before)
    whole = network.node("Concat", *steps, axis=1)
    return network.node("Reshape", whole, network.constant([-1, length, lstm.units], np.int64))


def _kept_step(network: Network, operator: Any, lstm: _Lstm) -> str:
    """A single step, whose state is kept from window to window."""
    weights = lstm.weights
    inputs = [int(index) for index in operator.inputs]
    names = [f"lstm_{operator.outputs[0]}_{part}" for part in ("output", "cell")]
    gates = network.node("MatMul", network.value(inputs[0]), network.constant(_side_by_side(weights.fed).T))
    gates = network.node("Add", gates, network.constant(_side_by_side(weights.bias)))
    given = network.node("Reshape", gates, network.constant([-1, 4 * lstm.units], np.int64))
    before, cell = (network.held(name, index) for name, index in zip(names, inputs[18:20], strict=True))
    from_before = network.constant(_side_by_side(weights.before).T)
    state = _step(network, given, from_before, lstm.units, state=(before, cell), clip=lstm.clip)
    for name, value, index in zip(names, state, inputs[18:20], strict=True):
        network.hold(name, value, index)
    return network.node("Reshape", state[0], network.constant([-1, 1, lstm.units], np.int64))


def _step(
    network: Network, given: str, from_before: str, units: int, *, state: tuple[str, str], clip: float
) -> tuple[str, str]:
    """Output and cell after a step; `given` is the input's share of the gates, and empty names are zeros."""
    before, cell = state
    gates = network.node("Add", given, network.node("MatMul", before, from_before)) if before else given
    gated, plain = network.nodes("Split", 2, gates, network.constant([3 * units, units], np.int64), axis=1)
    opened = network.node("Sigmoid", gated)
    enter, forget, output = network.nodes("Split", 3, opened, network.constant([units] * 3, np.int64), axis=1)
    fresh = network.node("Mul", enter, network.node("Tanh", plain))
    cell = network.node("Add", network.node("Mul", forget, cell), fresh) if cell else fresh
    if clip > 0:
        cell = network.node("Clip", cell, network.constant(-clip), network.constant(clip))
    return network.node("Mul", output, network.node("Tanh", cell)), cell


def _side_by_side(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Weights of the gates enter, forget, cell and output, as enter, forget, output and cell: sigmoids together."""
    enter, forget, cell, output = parts
    return np.concatenate([enter, forget, output, cell])
