"""The operators of TFLite, each as its ONNX counterpart. `OPERATORS` is the table; what is not in it is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np

from converter.load.tflite_lstm import lstm
from converter.load.tflite_network import Network
from edge_runtime.errors import CommandError


def _convolution(network: Network, operator: Any, depthwise: bool) -> None:
    options, (x, w, *bias) = operator.builtinOptions, operator.inputs
    kernel = network.shape(w)[1:3]
    strides, steps = (options.strideH, options.strideW), (options.dilationHFactor, options.dilationWFactor)
    weight = network.weight(w, (3, 0, 1, 2) if depthwise else (0, 3, 1, 2), 0)
    inputs = [network.picture(x), weight]
    if bias and bias[0] >= 0:
        inputs.append(network.weight(bias[0], (), 0))
    result = network.node(
        "Conv",
        *inputs,
        kernel_shape=kernel,
        strides=list(strides),
        dilations=list(steps),
        pads=network.pads(operator, (kernel[0], kernel[1]), strides, steps),
        group=network.shape(x)[3] if depthwise else 1,
    )
    network.give(operator.outputs[0], result, options.fusedActivationFunction, first=True)


def _fully_connected(network: Network, operator: Any) -> None:
    x, w, *bias = operator.inputs
    columns = network.shape(w)[1]
    flat = network.node("Reshape", network.value(x), network.constant([-1, columns], np.int64))
    inputs = [flat, network.weight(w, (1, 0), 1)]
    if bias and bias[0] >= 0:
        inputs.append(network.weight(bias[0], (), 0))
    result = network.node("Gemm", *inputs) if len(inputs) == 3 else network.node("MatMul", *inputs)
    network.give(operator.outputs[0], result, operator.builtinOptions.fusedActivationFunction)


def _pool(kind: str) -> Callable[[Network, Any], None]:
    def convert(network: Network, operator: Any) -> None:
        options = operator.builtinOptions
        kernel, strides = (options.filterHeight, options.filterWidth), (options.strideH, options.strideW)
        pads = network.pads(operator, kernel, strides, (1, 1))
        result = network.node(
            kind, network.picture(operator.inputs[0]), kernel_shape=list(kernel), strides=list(strides), pads=pads
        )
        network.give(operator.outputs[0], result, options.fusedActivationFunction, first=True)

    return convert


def _reshape(network: Network, operator: Any) -> None:
    shape = network.shape(operator.outputs[0])
    target = network.constant([-1, *shape[1:]], np.int64)
    network.give(operator.outputs[0], network.node("Reshape", network.value(operator.inputs[0]), target))


def _elementwise(kind: str) -> Callable[[Network, Any], None]:
    def convert(network: Network, operator: Any) -> None:
        inputs = [network.value(index) for index in operator.inputs]
        activation = getattr(operator.builtinOptions, "fusedActivationFunction", 0) or 0
        network.give(operator.outputs[0], network.node(kind, *inputs), activation)

    return convert


def _softmax(network: Network, operator: Any) -> None:
    if abs(operator.builtinOptions.beta - 1.0) > 1e-6:
        scaled = network.node("Mul", network.value(operator.inputs[0]), network.constant(operator.builtinOptions.beta))
    else:
        scaled = network.value(operator.inputs[0])
    network.give(operator.outputs[0], network.node("Softmax", scaled, axis=-1))


def _mean(network: Network, operator: Any) -> None:
    axes = network.array(operator.inputs[1])
    keep = int(operator.builtinOptions.keepDims)
    assert axes is not None
    result = network.node(
        "ReduceMean", network.value(operator.inputs[0]), axes=axes.reshape(-1).tolist(), keepdims=keep
    )
    network.give(operator.outputs[0], result)


def _pad(network: Network, operator: Any) -> None:
    pads = network.array(operator.inputs[1])
    assert pads is not None
    amounts = network.constant(pads.T.reshape(-1), np.int64)
    network.give(operator.outputs[0], network.node("Pad", network.value(operator.inputs[0]), amounts))


def _concatenation(network: Network, operator: Any) -> None:
    values = [network.value(index) for index in operator.inputs]
    result = network.node("Concat", *values, axis=operator.builtinOptions.axis)
    network.give(operator.outputs[0], result, operator.builtinOptions.fusedActivationFunction)


def _same(network: Network, operator: Any) -> None:
    network.give(operator.outputs[0], network.value(operator.inputs[0]))


def _sliced(network: Network, operator: Any) -> None:
    """`STRIDED_SLICE`: constant begins, ends and strides; a masked end is open."""
    x, *limits = operator.inputs
    options = operator.builtinOptions
    begin, end, stride = (_whole(network, index) for index in limits)
    if options.ellipsisMask or options.newAxisMask:
        raise CommandError(f"{network.place}: no ONNX form is known for STRIDED_SLICE with an ellipsis or a new axis")
    far = np.iinfo(np.int64).max
    starts, stops = [], []
    for axis, step in enumerate(stride):
        first, last = begin[axis], end[axis]
        if options.shrinkAxisMask >> axis & 1:
            last = first + 1 if first != -1 else far
        starts.append((far if step < 0 else 0) if options.beginMask >> axis & 1 else first)
        is_whole = axis == 0 and (first, step, last) == (0, 1, network.shape(x)[0])  # the bundle's batch is free
        is_open = options.endMask >> axis & 1 or (is_whole and not options.shrinkAxisMask & 1)
        stops.append((-far if step < 0 else far) if is_open else last)
    axes = list(range(len(stride)))
    parts = [network.constant(part, np.int64) for part in (starts, stops, axes, stride)]
    result = network.node("Slice", network.value(x), *parts)
    shrunk = [axis for axis in axes if options.shrinkAxisMask >> axis & 1]
    if shrunk:
        result = network.node("Squeeze", result, network.constant(shrunk, np.int64))
    network.give(operator.outputs[0], result)


def _slice(network: Network, operator: Any) -> None:
    begin, size = (_whole(network, index) for index in operator.inputs[1:])
    far, sizes = np.iinfo(np.int64).max, network.shape(operator.inputs[0])
    # A part that is the whole axis stays open: the batch of the file is 1, that of the bundle is free.
    whole = [first == 0 and count == full for first, count, full in zip(begin, size, sizes, strict=True)]
    ends = [
        far if count < 0 or is_whole else first + count
        for first, count, is_whole in zip(begin, size, whole, strict=True)
    ]
    parts = [network.constant(part, np.int64) for part in (begin, ends)]
    network.give(operator.outputs[0], network.node("Slice", network.value(operator.inputs[0]), *parts))


def _split(network: Network, operator: Any) -> None:
    """`SPLIT` has the axis first, `SPLIT_V` the value, the sizes and the axis."""
    has_sizes = len(operator.inputs) == 3
    x, axis = operator.inputs[0 if has_sizes else 1], _whole(network, operator.inputs[2 if has_sizes else 0])[0]
    count = len(operator.outputs)
    axis %= len(network.shape(x))
    sizes = [network.shape(output)[axis] for output in operator.outputs]
    parts = network.nodes("Split", count, network.value(x), network.constant(sizes, np.int64), axis=axis)
    for output, part in zip(operator.outputs, parts, strict=True):
        network.give(output, part)


def _gather(network: Network, operator: Any) -> None:
    table, places = operator.inputs
    if getattr(operator.builtinOptions, "batchDims", 0):
        raise CommandError(f"{network.place}: no ONNX form is known for GATHER with batch dimensions")
    axis = operator.builtinOptions.axis
    network.give(operator.outputs[0], network.node("Gather", network.value(table), network.value(places), axis=axis))


def _transpose(network: Network, operator: Any) -> None:
    order = _whole(network, operator.inputs[1])
    network.give(operator.outputs[0], network.node("Transpose", network.value(operator.inputs[0]), perm=order))


def _sum(network: Network, operator: Any) -> None:
    axes = network.constant(_whole(network, operator.inputs[1]), np.int64)
    keep = int(operator.builtinOptions.keepDims)
    network.give(operator.outputs[0], network.node("ReduceSum", network.value(operator.inputs[0]), axes, keepdims=keep))


def _largest(network: Network, operator: Any) -> None:
    axes = _whole(network, operator.inputs[1])
    keep = int(operator.builtinOptions.keepDims)
    network.give(
        operator.outputs[0], network.node("ReduceMax", network.value(operator.inputs[0]), axes=axes, keepdims=keep)
    )


def _relu6(network: Network, operator: Any) -> None:
    limits = network.constant(0.0), network.constant(6.0)
    network.give(operator.outputs[0], network.node("Clip", network.value(operator.inputs[0]), *limits))


def _leaky(network: Network, operator: Any) -> None:
    alpha = float(operator.builtinOptions.alpha)
    network.give(operator.outputs[0], network.node("LeakyRelu", network.value(operator.inputs[0]), alpha=alpha))


def _whole(network: Network, index: int) -> list[int]:
    """A constant list of whole numbers."""
    array = network.array(index)
    if array is None:
        raise CommandError(f"{network.place}: expected constant axes and sizes, found computed ones")
    return [int(value) for value in array.reshape(-1)]


OPERATORS: dict[str, Callable[[Network, Any], None]] = {
    "CONV_2D": lambda network, operator: _convolution(network, operator, depthwise=False),
    "DEPTHWISE_CONV_2D": lambda network, operator: _convolution(network, operator, depthwise=True),
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool("AveragePool"),
    "MAX_POOL_2D": _pool("MaxPool"),
    "RESHAPE": _reshape,
    "SQUEEZE": _reshape,
    "EXPAND_DIMS": _reshape,
    "SOFTMAX": _softmax,
    "LOGISTIC": _elementwise("Sigmoid"),
    "TANH": _elementwise("Tanh"),
    "RELU": _elementwise("Relu"),
    "ADD": _elementwise("Add"),
    "SUB": _elementwise("Sub"),
    "MUL": _elementwise("Mul"),
    "MEAN": _mean,
    "PAD": _pad,
    "CONCATENATION": _concatenation,
    "DIV": _elementwise("Div"),
    "MINIMUM": _elementwise("Min"),
    "MAXIMUM": _elementwise("Max"),
    "ABS": _elementwise("Abs"),
    "EXP": _elementwise("Exp"),
    "SQRT": _elementwise("Sqrt"),
    "LOG": _elementwise("Log"),
    "NEG": _elementwise("Neg"),
    "HARD_SWISH": _elementwise("HardSwish"),
    "ELU": _elementwise("Elu"),
    "RELU6": _relu6,
    "LEAKY_RELU": _leaky,
    "SUM": _sum,
    "REDUCE_MAX": _largest,
    "TRANSPOSE": _transpose,
    "STRIDED_SLICE": _sliced,
    "SLICE": _slice,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "GATHER": _gather,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": lstm,
    "VAR_HANDLE": Network.handle,
    "READ_VARIABLE": Network.read_variable,
    "ASSIGN_VARIABLE": Network.assign_variable,
    "QUANTIZE": _same,
    "DEQUANTIZE": _same,
}
