"""Depthwise convolutions over parts of the channels, made one: the parts are cut, convolved and joined again in a file.

MixConv blocks, as streaming wake words have them, split the channels, take as many of the latest rows as each part's
kernel is long, and join the results: six operators for what is one depthwise convolution whose shorter kernels begin
with zeros. In int8 a zero weight adds nothing, and all parts round to the same scale, so that every bit stays. On a
device each operator costs about as much as its arithmetic there. Floats are left as they are: zero times infinity is
not zero, and sums of floats depend on their order.
"""

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class _Part(NamedTuple):
    """A part of the channels: rows left out at the start, the convolution, and the operators that make it."""

    skipped: int
    convolution: Any
    operators: list[Any]


class _Merge:
    def __init__(self, schema: Any, model: Any) -> None:
        self.schema, self.model, self.graph = schema, model, model.subgraphs[0]
        names = {value: key for key, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        self._kinds = [names[max(code.builtinCode, code.deprecatedBuiltinCode)] for code in model.operatorCodes]
        self._makers = {int(output): op for op in self.graph.operators for output in op.outputs}
        read = [int(index) for op in self.graph.operators for index in op.inputs]
        self._readers = Counter([*read, *map(int, self.graph.outputs)])

    def kind(self, operator: Any) -> str:
        return str(self._kinds[operator.opcodeIndex])

    def tensor(self, index: int) -> Any:
        return self.graph.tensors[int(index)]

    def array(self, index: int, kind: Any) -> NDArray[Any] | None:
        data = self.model.buffers[self.tensor(index).buffer].data
        return None if data is None or not len(data) else np.frombuffer(bytes(bytearray(data)), kind)

    def parts_of(self, joined: Any) -> tuple[Any, list[_Part]] | None:
        """The split whose parts a concatenation joins, and the parts; None where the pattern is another one."""
        options, last = joined.builtinOptions, len(self.tensor(joined.outputs[0]).shape) - 1
        if options.axis not in (-1, last) or options.fusedActivationFunction or last != 3:
            return None
        found, splits = [], []
        for output in joined.inputs:
            convolution = self._sole_maker(output, "DEPTHWISE_CONV_2D")
            if convolution is None or not self._is_plain(convolution, joined):
                return None
            source, operators, skipped = int(convolution.inputs[0]), [convolution], 0
            sliced = self._sole_maker(source, "STRIDED_SLICE")
            if sliced is not None:
                start = self._rows_skipped(sliced)
                if start is None:
                    return None
                source, skipped = int(sliced.inputs[0]), start
                operators.append(sliced)
            split = self._makers.get(source)
            if split is None or self.kind(split) not in ("SPLIT", "SPLIT_V") or self._readers[source] != 1:
                return None
            if not self._same_scale(source, convolution.inputs[0]):
                return None
            found.append(_Part(skipped, convolution, operators))
            splits.append((split, source))
        split = splits[0][0]
        in_order = [source for _, source in splits] == [int(output) for output in split.outputs]
        axis = self.array(split.inputs[2 if self.kind(split) == "SPLIT_V" else 0], np.int32)
        whole = self.whole_of(split)
        fits = axis is not None and int(axis[0]) in (-1, 3) and self._same_scale(whole, splits[0][1])
        ends = {part.skipped + self.tensor(part.convolution.inputs[1]).shape[1] for part in found}
        if not in_order or not fits or any(each is not split for each, _ in splits) or len(ends) != 1:
            return None
        return split, found

    def whole_of(self, split: Any) -> int:
        return int(split.inputs[0 if self.kind(split) == "SPLIT_V" else 1])

    def replace(self, joined: Any, split: Any, parts: list[_Part]) -> None:
        """One convolution in place of the concatenation, and the rest gone."""
        merged = parts[0].convolution
        height = parts[0].skipped + self.tensor(merged.inputs[1]).shape[1]
        width = self.tensor(merged.inputs[1]).shape[2]
        kernels, biases = [], []
        for part in parts:
            shape = [int(size) for size in self.tensor(part.convolution.inputs[1]).shape]
            kernel, bias = (
                self.array(part.convolution.inputs[place], kind) for place, kind in ((1, np.int8), (2, np.int32))
            )
            assert kernel is not None
            assert bias is not None
            kernels.append(np.pad(kernel.reshape(shape), ((0, 0), (part.skipped, 0), (0, 0), (0, 0))))
            biases.append(bias)
        channels = sum(kernel.shape[3] for kernel in kernels)
        places = [
            self._constant([part.convolution.inputs[place] for part in parts], np.concatenate(values, axis=axis), shape)
            for place, values, axis, shape in (
                (1, kernels, 3, [1, height, width, channels]), (2, biases, 0, [channels]),
            )
        ]  # fmt: skip
        merged.inputs, merged.outputs = [self.whole_of(split), *places], [int(joined.outputs[0])]
        gone = {id(split), *(id(each) for part in parts for each in part.operators)}
        self.graph.operators = [
            merged if each is joined else each for each in self.graph.operators if id(each) not in gone
        ]

    def _sole_maker(self, index: int, kind: str) -> Any:
        maker = self._makers.get(int(index))
        return maker if maker is not None and self.kind(maker) == kind and self._readers[int(index)] == 1 else None

    def _is_plain(self, convolution: Any, joined: Any) -> bool:
        """A convolution whose steps are 1, which pads nothing, and whose numbers are rounded as the whole's are."""
        options, inputs = convolution.builtinOptions, [int(index) for index in convolution.inputs]
        if len(inputs) < 3 or inputs[2] < 0 or options.padding != self.schema.Padding.VALID:
            return False
        steps = (options.strideH, options.strideW, options.dilationHFactor, options.dilationWFactor)
        weight, x = self.tensor(inputs[1]), self.tensor(inputs[0])
        types = self.schema.TensorType
        is_int8 = (x.type, weight.type, self.tensor(inputs[2]).type) == (types.INT8, types.INT8, types.INT32)
        if steps != (1, 1, 1, 1) or options.fusedActivationFunction or not is_int8:
            return False
        is_even = weight.shape[2] == x.shape[2] and weight.shape[3] == x.shape[3]  # one row high, no multiplier
        known = all(self.array(index, np.int8) is not None for index in inputs[1:3])
        centred = not np.any(weight.quantization.zeroPoint)
        return bool(is_even and known and centred and self._same_scale(convolution.outputs[0], joined.outputs[0]))

    def _rows_skipped(self, sliced: Any) -> int | None:
        """How many rows a slice leaves out at the start, where it does nothing else."""
        options, (x, *limits) = sliced.builtinOptions, sliced.inputs
        found = [self.array(limit, np.int32) for limit in limits]
        if any(part is None for part in found) or options.ellipsisMask or options.newAxisMask or options.shrinkAxisMask:
            return None
        given, taken = self.tensor(x).shape, self.tensor(sliced.outputs[0]).shape
        if list(found[2]) != [1] * len(given) or not self._same_scale(x, sliced.outputs[0]):  # type: ignore[arg-type]
            return None
        skipped = [int(full) - int(part) for full, part in zip(given, taken, strict=True)]
        start = 0 if options.beginMask & 2 else int(found[0][1])  # type: ignore[index]
        start += int(given[1]) if start < 0 else 0
        only_rows = [each for axis, each in enumerate(skipped) if axis != 1] == [0] * (len(given) - 1)
        return skipped[1] if only_rows and start == skipped[1] else None

    def _same_scale(self, one: int, other: int) -> bool:
        first, second = (self.tensor(index).quantization for index in (one, other))
        return all(
            np.array_equal(np.asarray(getattr(first, name)), np.asarray(getattr(second, name)))
            for name in ("scale", "zeroPoint")
        )

    def _constant(self, sources: list[int], values: NDArray[Any], shape: list[int]) -> int:
        """A constant like the sources side by side, with a scale for each channel."""
        buffer, tensor, quantization = (
            self.schema.BufferT(), self.schema.TensorT(), self.schema.QuantizationParametersT(),
        )  # fmt: skip
        buffer.data = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        first = self.tensor(sources[0])
        tensor.name, tensor.type, tensor.shape, tensor.buffer = first.name, first.type, shape, len(self.model.buffers)
        counts = [int(self.tensor(source).shape[-1]) for source in sources]
        scales = [np.asarray(self.tensor(source).quantization.scale, np.float32) for source in sources]
        quantization.scale = np.concatenate([np.broadcast_to(s, n) for s, n in zip(scales, counts, strict=True)])
        quantization.zeroPoint = np.zeros(len(quantization.scale), np.int64)
        quantization.quantizedDimension = len(shape) - 1
        tensor.quantization = quantization
        self.model.buffers.append(buffer)
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1


def merge_parts(schema: Any, model: Any) -> int:
    """Make such blocks one convolution each, in place.

    Args:
        schema: the module of TFLite's schema.
        model: its `ModelT`.

    Returns:
        how many.
    """
    merge, count = _Merge(schema, model), 0
    for operator in list(merge.graph.operators):
        found = merge.parts_of(operator) if merge.kind(operator) == "CONCATENATION" else None
        if found is not None:
            merge.replace(operator, *found)
            count += 1
    return count
