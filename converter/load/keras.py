"""Keras 3 and older Keras: `.keras` and `.h5` files, on Keras's torch backend, exported like any PyTorch module.

The reference is the Keras model itself. Keras 2 wrote keys that Keras 3 refuses (the `groups` of a depthwise
convolution, the `time_major` of a recurrent layer); such a file is read from a copy without them, if they have Keras
3's fixed value. A file with a Lambda or similar layer, or with objects from outside Keras, carries code and needs
--trust. The first bytes decide the format once, and Keras gets a copy of exactly the checked content with the suffix of
that format, since a file can be HDF5 and a zip at once. TensorFlow is not needed; `savedmodel.py` reads its SavedModel
folders.
"""

import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converter.load.kind import Loader, ModelFile
from converter.load.optional import require
from converter.load.torch import TorchModel, exported, quiet
from converter.spec import Spec
from edge_runtime.errors import CommandError

# Allowed modules of an architecture. Functions are not allowed: `keras.utils.get_file` is one as well.
_KNOWN_MODULES = ("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints", "keras.src.models",
                  "keras.optimizers", "keras.losses", "keras.metrics")  # fmt: skip
# Keys of Keras 2 that Keras 3 refuses: their layers, and the only value without effect.
# Initialisers, regularisers and constraints have no effect on a trained model.
_SEPARABLE = ("SeparableConv1D", "SeparableConv2D")
_FORMER: dict[str, tuple[tuple[str, ...], Any]] = {
    "groups": (("DepthwiseConv1D", "DepthwiseConv2D", *_SEPARABLE, "Conv1DTranspose", "Conv2DTranspose",
                "Conv3DTranspose"), 1),
    "time_major": (("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), False),
    "kernel_initializer": (_SEPARABLE, ...),
    "kernel_regularizer": (_SEPARABLE, ...),
    "kernel_constraint": (_SEPARABLE, ...),
}  # fmt: skip
_FORMER_MODULE = "tf_keras.src.engine.functional"
# Layers and objects that are code, or contain programs of other frameworks, under every name.
_CODE = frozenset({
    "Lambda", "__lambda__", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer", "TFLayer", "TensorFlowOpLayer",
    "TFOpLambda", "SlicingOpLambda", "ClassMethod", "InstanceMethod", "__typespec__",
})  # fmt: skip
_WEIGHTS = "model.weights.h5"
_MEMBERS = ("metadata.json", "config.json", _WEIGHTS)
_SAFE = (3, 12)  # older ones run code in files despite `safe_mode` (CVE-2025-1550, -8747, -9905, -12058)
_KNOWN_IN_KERAS = ("Functional", "Sequential", "Model", "DTypePolicy")


def load(path: Path, spec: Spec, trust: bool) -> TorchModel:
    """Load a Keras file.

    Raises:
        CommandError: Keras is not installed, the file is damaged, or it carries code and is not trusted.
    """
    is_zip = _is_zip(path)
    modern = _modern(_config_of(path, is_zip))
    strange = sorted({*_code_in(modern), *_links(path, is_zip)})
    if strange and not trust:
        raise CommandError(
            f"{path}: it carries code ({', '.join(strange)}): add --trust if you trust where it comes from"
        )
    os.environ.setdefault("KERAS_BACKEND", "torch")
    require("torch", path, "keras")
    keras = require("keras", path)
    if _release(keras.__version__) < _SAFE and not trust:
        raise CommandError(
            f"{path}: expected Keras {'.'.join(map(str, _SAFE))} or newer, found {keras.__version__}, which files can "
            "make to run code: update it"
        )
    if keras.backend.backend() != "torch":
        raise CommandError(f"{path}: expected Keras on torch, found KERAS_BACKEND={keras.backend.backend()}")

    try:
        with quiet(), tempfile.TemporaryDirectory() as place:
            readable = _rewritten(path, modern, Path(place), is_zip=is_zip)
            model = keras.models.load_model(readable, compile=False, safe_mode=not trust)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(f"{path}: Keras cannot load it: {text[0][:200] if text else error}") from error
    torch = require("torch", path, "keras")
    inputs = list(model.inputs)
    example = tuple(
        torch.zeros(2, *_sizes(given, len(inputs), spec, path), dtype=getattr(torch, str(given.dtype)))
        for given in inputs
    )
    batch = {0: torch.export.Dim("N")}
    several = len(inputs) > 1
    how: dict[str, Any] = {
        "dynamo": True,
        "dynamic_shapes": (tuple(batch for _ in inputs),) if several else (batch,),
        "opset_version": 18,
    }
    if several:
        how["input_names"] = [given.name for given in inputs]
    if len(model.outputs) > 1:
        how["output_names"] = list(model.output_names)
    module = _module_of_several(torch, model) if several else _module_of(torch, model)
    loaded = exported(module, example, how, spec, path=path)
    loaded.framework, loaded.version = "Keras", str(keras.__version__)
    return loaded


def _sizes(given: Any, count: int, spec: Spec, path: Path) -> tuple[int, ...]:
    """The sizes of an input; open ones come from the specification.

    Raises:
        CommandError: the specification does not give them.
    """
    shape = tuple(given.shape[1:])
    if None not in shape:
        return shape
    channels = len(spec.channel)
    if count > 1:
        group = next((each for each in spec.input if each.name == given.name), None)
        channels = len(group.channels) if group is not None else 0
    wanted: tuple[int, ...] = (spec.length, channels) if len(shape) > 1 else (spec.length * channels,)
    if spec.frame is not None:
        wanted = spec.frame.shape
        if len(wanted) == 3 and (spec.frame.layout, spec.model.layout) == ("hwc", "chw"):
            wanted = (wanted[2], *wanted[:2])
    elif spec.model.layout == "channel_first" and len(shape) == 2:
        wanted = wanted[::-1]
    filled = tuple(size or other for size, other in zip(shape, wanted, strict=False))
    if len(wanted) != len(shape) or 0 in wanted or filled != wanted:
        raise CommandError(
            f"{path}: input {given.name!r} leaves sizes open ({', '.join(str(size or '?') for size in shape)}): "
            f"expected [window] and [[channel]], or [frame], that fill them, found {list(wanted)}"
        )
    return filled


def _module_of_several(torch: Any, model: Any) -> Any:
    """As `_module_of`, for a model of several inputs."""

    class ModuleOfSeveral(torch.nn.Module):  # type: ignore[misc]
        """Keras's own model, called without training."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *windows: Any) -> Any:
            return self.model(list(windows), training=False)

    return ModuleOfSeveral().eval()


def _module_of(torch: Any, model: Any) -> Any:
    """The model as a module with one tensor as argument, in evaluation mode."""

    class Module(torch.nn.Module):  # type: ignore[misc]
        """Keras's own model, called without training."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, window: Any) -> Any:
            return self.model(window, training=False)

    return Module().eval()


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _is_zip(path: Path) -> bool:
    """Whether the file is a `.keras` archive, by its first bytes; else it is HDF5."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK\x03\x04"):
        return True
    if head == b"\x89HDF\r\n\x1a\n":
        return False
    raise CommandError(f"{path}: expected a Keras model, found a damaged, truncated or other file")


def _config_of(path: Path, is_zip: bool) -> Any:
    """The architecture as JSON; no code of the file runs."""
    try:
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read("config.json"))
        with require("h5py", path, "keras").File(path, "r") as file:
            text = file.attrs["model_config"]
            return json.loads(text)
    except CommandError:
        raise
    except KeyError as error:
        raise CommandError(
            f"{path}: expected a whole Keras model, found weights without one: save the model"
        ) from error
    except Exception as error:
        raise CommandError(f"{path}: expected a Keras model, found a damaged, truncated or other file") from error


def _links(path: Path, is_zip: bool) -> list[str]:
    """Weights that refer to other files."""
    if not is_zip:
        return _links_in(path, path)
    with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as place:
        if _WEIGHTS not in archive.namelist():
            return []
        copy = Path(place) / _WEIGHTS
        with archive.open(_WEIGHTS) as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        return _links_in(copy, path) if copy.stat().st_size else []


def _links_in(weights: Path, path: Path) -> list[str]:
    """Links of an HDF5 file to other files, of every kind in HDF5.

    Raises:
        CommandError: it is no HDF5.
    """
    h5py = require("h5py", path, "keras")
    try:
        with h5py.File(weights, "r") as file:
            return list(_links_below(h5py, file))
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise CommandError(f"{path}: expected a Keras model, found a damaged, truncated or other file") from error


def _links_below(h5py: Any, file: Any) -> Iterator[str]:
    """The links of all groups, each visited once, since groups may contain each other."""
    waiting, seen = [file], set()
    while waiting:
        group = waiting.pop()
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                yield f"a link to another file at {group.name}/{name}"
                continue
            item = group.get(name)
            if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
                yield f"weights in another file at {item.name}"
            elif isinstance(item, h5py.Group) and item.id not in seen:
                seen.add(item.id)
                waiting.append(item)


def _modern(config: Any) -> Any:
    """The architecture with the keys of Keras 3."""
    if isinstance(config, list):
        return [_modern(value) for value in config]
    if not isinstance(config, dict):
        return config
    kind, inner = config.get("class_name"), config.get("config")
    config = {key: _modern(value) for key, value in config.items()}
    if config.get("module") == _FORMER_MODULE:
        config["module"] = "keras.src.models.functional"
    if isinstance(inner, dict):
        former = {
            key
            for key, (kinds, value) in _FORMER.items()
            if kind in kinds and (value is ... or inner.get(key) == value)
        }
        config["config"] = {key: value for key, value in config["config"].items() if key not in former}
        axis = inner.get("axis")
        if kind == "BatchNormalization" and isinstance(axis, list) and len(axis) == 1:
            config["config"]["axis"] = axis[0]
    return config


def _rewritten(path: Path, config: Any, place: Path, *, is_zip: bool) -> Path:
    """A copy of exactly the checked content, with the suffix of its format."""
    if not is_zip:
        copy = place / "model.h5"
        shutil.copyfile(path, copy)
        with require("h5py", path, "keras").File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        return copy
    copy = place / "model.keras"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        there = set(source.namelist())
        for name in _MEMBERS:
            if name in there:
                target.writestr(name, json.dumps(config) if name == "config.json" else source.read(name))
    return copy


def _code_in(config: Any) -> Iterator[str]:
    """Every object in the architecture that carries code."""
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module")
        for key in ("class_name", "registered_name"):
            last = re.split(r"[>.:/]", str(config.get(key)))[-1]
            if last in _CODE:
                yield last
        known = module == "keras" and name in _KNOWN_IN_KERAS
        if isinstance(module, str) and not known and not module.startswith(_KNOWN_MODULES):
            yield f"{module}.{name}"
        for value in config.values():
            yield from _code_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from _code_in(value)


def _recognise(file: ModelFile) -> str | None:
    if file.head.startswith(b"\x89HDF"):  # content behind it, such as a zip, is ignored
        return "keras"
    return "keras" if {"model.weights.h5", "config.json"} <= (file.members or set()) else None


LOADER = Loader("Keras", _recognise, lambda path, spec, _kind, trust: load(path, spec, trust))
