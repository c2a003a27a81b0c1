"""Keras 3 and older Keras: `.keras` and `.h5` files, on Keras's torch backend, exported as any PyTorch module is.

The truth is the Keras model itself. Files of Keras 2 that Keras 3 stumbles over (the `groups` of a depthwise
convolution) are read with that key left out. A file with a Lambda layer, or with objects from outside Keras,
carries code and needs --trust. TensorFlow is not needed, and SavedModel folders are not read.
"""

import json
import os
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
_KNOWN_IN_KERAS = ("Functional", "Sequential", "Model", "DTypePolicy")


def load(path: Path, spec: Spec, trust: bool) -> TorchModel:
    """Load a Keras file.

    Raises:
        CommandError: Keras is not installed, or the file is damaged or carries code and is not trusted.
    """
    strange = sorted(set(_code_in(_config_of(path))))
    if strange and not trust:
        raise CommandError(
            f"{path}: it carries code ({', '.join(strange)}): add --trust if you trust where it comes from"
        )
    os.environ.setdefault("KERAS_BACKEND", "torch")
    require("torch", path, "keras")
    keras = require("keras", path)
    if keras.backend.backend() != "torch":
        raise CommandError(f"{path}: expected Keras on torch, found KERAS_BACKEND={keras.backend.backend()}")

    class DepthwiseConv2D(keras.layers.DepthwiseConv2D):  # type: ignore[misc, name-defined]
        """Keras 2 wrote `groups`, which is always 1 here, and which Keras 3 does not know."""

        def __init__(self, *args: Any, groups: int = 1, **kwargs: Any) -> None:  # noqa: ARG002
            super().__init__(*args, **kwargs)

    try:
        with quiet():
            model = keras.models.load_model(
                path, compile=False, safe_mode=not trust, custom_objects={"DepthwiseConv2D": DepthwiseConv2D}
            )
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
