"""The parts of a window for each input of a model, and its other inputs and outputs."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from converter.load.onnx_graph import numpy_type
from converter.load.source import ModelInput
from converter.load.tensors import layout_of
from converter.spec import InputSpec, Spec
from edge_runtime.bundle.manifest import NamedTensor
from edge_runtime.errors import CommandError


def require_name(name: str, known: Any, what: str, place: str) -> None:
    """Refuse a name that is not in the file."""
    if name not in known:
        raise CommandError(f"{place}: {what}: expected one of {', '.join(known)}, found {name!r}")


def feeds_of(inputs: Mapping[str, Any], states: set[str], spec: Spec, place: str) -> tuple[ModelInput, ...]:
    """The inputs that take the window, or a group of its channels each.

    Args:
        inputs: of the file, with their sizes in `shape`.
        states: inputs that are states.
        spec: the specification.
        place: the file, for messages.

    Raises:
        CommandError: an input has no source, a name is unknown, or sizes do not match.
    """
    for name in spec.constants:
        require_name(name, inputs, "[constants]", place)
    free = [name for name in inputs if name not in states | set(spec.constants)]
    if spec.input:
        return _groups(inputs, free, spec, place)
    asked = spec.model.input
    if asked is not None:
        require_name(asked, inputs, "[model] input", place)
        if free != [asked]:
            others = ", ".join(name for name in free if name != asked)
            raise CommandError(f"{place}: inputs that nothing feeds: {others}: name them as states or constants")
    if len(free) != 1:
        found = ", ".join(f"{name} {inputs[name].shape}" for name in free) or "none"
        raise CommandError(
            f"{place}: expected one input for the window, found {found}: name it in [model] and the others in "
            "[[state]] or [constants], or name each with its channels in [[input]]"
        )
    return (ModelInput(free[0], layout_of(_dims(inputs[free[0]]), spec, place)),)


def _groups(inputs: Mapping[str, Any], free: list[str], spec: Spec, place: str) -> tuple[ModelInput, ...]:
    names = [channel.name for channel in spec.channel]
    for group in spec.input:
        require_name(group.name, inputs, "[[input]] name", place)
    unfed = sorted(set(free) - {group.name for group in spec.input})
    if unfed:
        raise CommandError(f"{place}: inputs that nothing feeds: {', '.join(unfed)}: name each in [[input]]")
    return tuple(_group(inputs[group.name], group, names, spec, place=place) for group in spec.input)


def _group(given: Any, group: InputSpec, names: Sequence[str], spec: Spec, *, place: str) -> ModelInput:
    """One group: its channels over the whole window, or of the last reading where the input has that size."""
    columns = tuple(names.index(name) for name in group.channels)
    channels = tuple(spec.channel[column] for column in columns)
    own = msgspec.structs.replace(spec, channel=channels)
    dims = _dims(given)
    known = int(np.prod([size for size in dims if size]))
    last = spec.length > 1 and 0 not in dims and known == len(columns)
    if last:
        own = msgspec.structs.replace(own, window=None)
    size = (1 if last else spec.length) * len(columns)
    if 0 not in dims and known != size:
        raise CommandError(
            f"{place}: [[input]] {group.name}: expected {known} values as the input takes, found "
            f"{len(columns)} channels over windows of {spec.length}, which makes {size}"
        )
    return ModelInput(group.name, layout_of(dims, own, place), columns, last=last)


def _dims(given: Any) -> tuple[int, ...]:
    """Sizes without the batch axis; 0 where the file leaves one open."""
    return tuple(size if isinstance(size, int) and size > 0 else 0 for size in given.shape)[1:]


def constants_of(
    inputs: Mapping[str, Any], feeds: Sequence[ModelInput], spec: Spec, place: str
) -> dict[str, NDArray[Any]]:
    """The values of `[constants]` in the shape of their inputs; an open batch axis becomes 1.

    Another open size takes the size of the same name in a fed input, such as a mask over a window of tokens.
    """
    sizes = {
        size: found
        for feed in feeds
        for size, found in zip(inputs[feed.input].shape[1:], feed.layout.wanted, strict=False)
        if isinstance(size, str)
    }
    constants = {}
    for name, value in spec.constants.items():
        given = inputs[name]
        array = np.asarray(value, dtype=numpy_type(given.type))
        missing = len(given.shape) - array.ndim
        array = array.reshape((1,) * missing + array.shape) if missing > 0 else array
        wanted = [1 if not axis else _size(size, sizes, array.shape[axis]) for axis, size in enumerate(given.shape)]
        try:
            constants[name] = np.ascontiguousarray(np.broadcast_to(array, wanted)) if wanted else array
        except ValueError as error:
            raise CommandError(
                f"{place}: [constants] {name}: expected {wanted} values or one for all, found {list(array.shape)}"
            ) from error
    return constants


def _size(size: Any, sizes: dict[str, int], own: int) -> int:
    """One size of a constant: fixed by its input, by a fed input of the same name, or by the constant itself."""
    return size if isinstance(size, int) and size > 0 else sizes.get(str(size), own)


def named_tensor(name: str, probe: NDArray[Any], task: str, place: str) -> NamedTensor:
    """One output as in the manifest, from the model's answers to a few windows.

    Raises:
        CommandError: it is text, or does not have a row for each window.
    """
    if probe.dtype.kind not in "fiub" or not probe.ndim:
        raise CommandError(f"{place}: [[output]] {name}: expected numbers, found {probe.dtype}")
    shape = tuple(int(size) for size in probe.shape[1:])
    if task == "embedding":
        shape = (int(np.prod(shape)),)
    if min(shape, default=1) < 1:
        raise CommandError(f"{place}: [[output]] {name}: expected positive sizes, found {list(shape)}")
    kind = "float32" if probe.dtype.kind == "f" else "int64"
    return NamedTensor(name=name, shape=shape, dtype=cast("Any", kind))
