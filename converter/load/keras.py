"""Keras 3 and older Keras: `.keras` and `.h5` files, on Keras's torch backend, exported as any PyTorch module is.

The truth is the Keras model itself. Keras 2 wrote words that Keras 3 stumbles over (the `groups` of a depthwise
convolution, the `time_major` of a recurrent layer); such a file is read from a copy without them, where they have the
value that Keras 3 takes for granted. A file with a Lambda layer, or with objects from outside Keras, carries code and
needs --trust. TensorFlow is not needed; its SavedModel folders are read by `savedmodel.py`.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from converter.load.optional import require
from converter.load.torch import TorchModel, exported, quiet
from converter.spec import Spec
from edge_runtime.errors import CommandError

# What an architecture may be made of. Functions are not among them: `keras.utils.get_file` is one as well.
_KNOWN_MODULES = ("keras.layers", "keras.initializers", "keras.regularizers", "keras.constraints", "keras.src.models",
                  "keras.optimizers", "keras.losses", "keras.metrics")  # fmt: skip
# Words of Keras 2 that Keras 3 has no place for: the layers that have them, and the only value that changes nothing.
# How a weight begins and is held in training means nothing to a trained model, whatever it says.
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
_KNOWN_IN_KERAS = ("Functional", "Sequential", "Model", "DTypePolicy")


def load(path: Path, spec: Spec, trust: bool) -> TorchModel:
    """Load a Keras file.

    Raises:
        CommandError: Keras is not installed, or the file is damaged or carries code and is not trusted.
    """
    config = _config_of(path)
    modern = _modern(config)
    strange = sorted(set(_code_in(modern)))
    if strange and not trust:
        raise CommandError(
            f"{path}: it carries code ({', '.join(strange)}): add --trust if you trust where it comes from"
        )
    os.environ.setdefault("KERAS_BACKEND", "torch")
    require("torch", path, "keras")
    keras = require("keras", path)
    if keras.backend.backend() != "torch":
        raise CommandError(f"{path}: expected Keras on torch, found KERAS_BACKEND={keras.backend.backend()}")

    try:
        with quiet(), tempfile.TemporaryDirectory() as place:
            readable = path if modern == config else _rewritten(path, modern, Path(place))
            model = keras.models.load_model(readable, compile=False, safe_mode=not trust)
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(f"{path}: Keras cannot load it: {text[0][:200] if text else error}") from error
    if isinstance(model.input_shape, list) or isinstance(model.output_shape, list):
        raise CommandError(f"{path}: expected one input and one output, found several")
    shape = model.input_shape[1:]
    if None in shape:
        raise CommandError(f"{path}: expected an input of fixed size, found {shape}: save it with one")
    torch = require("torch", path, "keras")
    how = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("N")},), "opset_version": 18}
    loaded = exported(_module_of(torch, model), (torch.zeros(2, *shape),), how, spec, path)
    loaded.framework, loaded.version = "Keras", str(keras.__version__)
    return loaded


def _module_of(torch: Any, model: Any) -> Any:
    """The model as a module that takes one tensor and is in evaluation mode, whatever Keras thinks of arguments."""

    class Module(torch.nn.Module):  # type: ignore[misc]
        """Keras's own model, called without training."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, window: Any) -> Any:
            return self.model(window, training=False)

    return Module().eval()


def _config_of(path: Path) -> Any:
    """The architecture, as JSON; nothing of the file is run."""
    try:
        if zipfile.is_zipfile(path):
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


def _modern(config: Any) -> Any:
    """The architecture in the words of Keras 3."""
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


def _rewritten(path: Path, config: Any, place: Path) -> Path:
    """A copy with another architecture; the weights are the same."""
    copy = place / path.name
    if not zipfile.is_zipfile(path):
        shutil.copyfile(path, copy)
        with require("h5py", path, "keras").File(copy, "r+") as file:
            file.attrs["model_config"] = json.dumps(config)
        return copy
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(copy, "w") as target:
        for name in source.namelist():
            target.writestr(name, json.dumps(config) if name == "config.json" else source.read(name))
    return copy


def _code_in(config: Any) -> Iterator[str]:
    """Every object in the architecture that brings code of its own."""
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module")
        if name in ("Lambda", "TorchModuleWrapper", "__lambda__"):
            yield str(name)
        known = module == "keras" and name in _KNOWN_IN_KERAS
        if isinstance(module, str) and not known and not module.startswith(_KNOWN_MODULES):
            yield f"{module}.{name}"
        for value in config.values():
            yield from _code_in(value)
    elif isinstance(config, list):
        for value in config:
            yield from _code_in(value)
