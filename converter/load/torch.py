"""PyTorch: exported programs (`.pt2`), TorchScript, and with --trust `module:function` that returns a model.

All go through torch's own ONNX exporter; the reference is the module itself, in evaluation mode, without gradients.
TorchScript is a program that can write files, when it is loaded and when it runs: it needs --trust. A `.pt2` is read
without --trust if it holds only numbers and a graph (`torch_archive.py`); torch then unpickles only tensors. A file
with only weights is no model and is refused with a hint.
"""

import contextlib
import importlib
import io
import logging
import os
import re
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.load.kind import Loader, ModelFile
from converter.load.onnx import OnnxModel
from converter.load.onnx_graph import numpy_type
from converter.load.optional import require
from converter.load.torch_archive import checked_copy
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_OPSET = 18  # the oldest opset of torch's exporter
_SCRIPT_OPSET = 17


def load_program(path: Path, spec: Spec, trust: bool) -> "TorchModel":
    """Load an exported program.

    Raises:
        CommandError: torch is not installed, the file is damaged, or it holds more than tensors and is not trusted.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = path if trust else Path(folder) / "model.pt2"
        try:
            strange = [] if trust else checked_copy(path, given)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, RecursionError) as error:
            raise CommandError(f"{path}: expected an exported program, found a damaged or other archive") from error
        if strange:
            raise CommandError(
                f"{path}: it holds more than numbers and a graph, which can run any code ({', '.join(strange[:5])}): "
                "add --trust if you trust where it comes from"
            )
        program = _program(given, path, trust)
    return exported(program.module(), (), {"dynamo": True}, spec, path=path, program=program)


def _program(given: Path, path: Path, trust: bool) -> Any:
    """The exported program; `given` is the file that torch gets, `path` the one that messages name."""
    torch = require("torch", path)
    try:
        with _tensors_only(not trust), quiet():
            return torch.export.load(given)
    except Exception as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise CommandError(
                f"{path}: it holds pickled objects, which can run any code: "
                "add --trust if you trust where it comes from"
            ) from error
        raise CommandError(f"{path}: torch cannot load it as an exported program: {_first(error)}") from error


def load_script(path: Path, spec: Spec, trust: bool) -> "TorchModel":
    """Load a TorchScript file.

    Raises:
        CommandError: it is not trusted, torch is not installed, the file is damaged, or the exporter refuses it.
    """
    if not trust:
        raise CommandError(
            f"{path}: TorchScript is a program, which can write files when it is loaded: nothing of it was run. If you "
            "trust where it comes from, add --trust; better, save the model with torch.export.save"
        )
    torch = require("torch", path)
    try:
        with quiet():
            module = torch.jit.load(str(path), map_location="cpu").eval()
    except Exception as error:
        raise CommandError(f"{path}: torch cannot load it as TorchScript: {_first(error)}") from error
    axes = {"input": {0: "N"}, "output": {0: "N"}}
    how = {"dynamo": False, "opset_version": _SCRIPT_OPSET, "input_names": ["input"], "output_names": ["output"],
           "dynamic_axes": axes}  # fmt: skip
    return exported(module, (_example(spec, path),), how, spec, path=path)


def load_function(name: str, spec: Spec, trust: bool) -> "TorchModel":
    """Call `module:function`, which returns a model.

    Raises:
        CommandError: it is not trusted, or does not return a module, or the exporter refuses it.
    """
    if not trust:
        raise CommandError(f"{name}: this runs code of yours: add --trust")
    torch = require("torch", name)
    module_name, _, function = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = getattr(importlib.import_module(module_name), function)()
    except Exception as error:
        raise CommandError(f"{name}: cannot be called: {type(error).__name__}: {_first(error)}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(module, torch.nn.Module):
        raise CommandError(f"{name}: expected a torch.nn.Module, found {type(module).__name__}")
    module = module.eval()
    how = {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("N")},), "opset_version": _OPSET}
    return exported(module, (_example(spec, Path(name)),), how, spec, path=Path(name))


def exported(
    module: Any, example: tuple[Any, ...], how: dict[str, Any], spec: Spec, *, path: Path, program: Any = None
) -> "TorchModel":
    """Export a module to ONNX.

    Args:
        module: in evaluation mode; it stays the reference.
        example: inputs for the export.
        how: the exporter's own settings.
        spec: the specification.
        path: the file, for messages.
        program: an exported program to export instead of the module.

    Raises:
        CommandError: the exporter refuses it.
    """
    program = module if program is None else program
    torch = require("torch", path)
    if how["dynamo"]:
        require("onnxscript", path, "torch")
    buffer = io.BytesIO()
    try:
        with quiet(), torch.no_grad():
            if how["dynamo"]:
                model = torch.onnx.export(program, example, verbose=False, **how).model_proto
            else:
                torch.onnx.export(program, example, buffer, **how)
                model = onnx.load_model_from_string(buffer.getvalue())
    except Exception as error:
        raise CommandError(f"{path}: torch cannot export it to ONNX: {_first(error)}") from error
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    return TorchModel(model, spec, str(path), module)


class TorchModel(OnnxModel):
    """A PyTorch module, and its export."""

    framework = "PyTorch"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str, module: Any) -> None:
        self._module = module
        super().__init__(model, spec, place)
        self.version = str(require("torch", place).__version__)

    def _ask(self, windows: Floats) -> dict[str, NDArray[Any]]:
        if self._states or self._constants:
            return super()._ask(windows)
        torch = require("torch", self._place)
        feeds = {feed.input: feed for feed in self._feeds}
        fed = [
            torch.from_numpy(np.ascontiguousarray(feeds[name].arrange(windows, _type_of(given.type))))
            for name, given in self._inputs.items()
        ]
        with torch.no_grad():
            found = self._module(*fed)
        found = list(found.values()) if isinstance(found, dict) else found
        parts = list(found) if isinstance(found, (list, tuple)) else [found]
        names = [item.name for item in self._session.get_outputs()]
        return {name: part.detach().numpy() for name, part in zip(names, parts, strict=True)}


def _type_of(kind: str) -> Any:
    return np.float32 if "float" in kind else numpy_type(kind)


def _example(spec: Spec, path: Path) -> Any:
    """Two windows of zeros in the specification's shape, because the file has none."""
    torch = require("torch", path)
    if spec.frame is not None:
        shape = spec.frame.shape
        if (spec.frame.layout, spec.model.layout) == ("hwc", "chw"):
            shape = (shape[2], *shape[:2])
    elif not spec.channel:
        raise CommandError(f"{path}: the file does not tell its input; expected [[channel]] or [frame] in --spec")
    else:
        length, channels = spec.length, len(spec.channel)
        if spec.model.layout == "channel_first":
            shape = (channels, length)
        elif spec.model.layout == "flat" or spec.window is None:
            shape = (length * channels,)
        else:
            shape = (length, channels)
    wide = spec.frame is not None and spec.frame.dtype in ("int32", "int64")
    return torch.zeros(2, *shape, dtype=getattr(torch, spec.frame.dtype) if wide and spec.frame else torch.float32)


@contextlib.contextmanager
def _tensors_only(yes: bool) -> Iterator[None]:
    """Torch's own switch: pickles give only tensors."""
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    if yes:
        os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard the exporter's output, which is for developers of torch."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _recognise(file: ModelFile) -> str | None:
    if not file.path.exists():
        return "function" if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(file.path)) else None
    inner = {name.partition("/")[2] for name in file.members or ()}
    if {"models/model.json", "archive_format"} & inner or "serialized_exported_program.json" in (file.members or ()):
        return "exported program"
    if "data.pkl" not in inner:
        return None
    if any(name.startswith("code/") for name in inner):
        return "TorchScript"
    raise CommandError(
        f"{file.path}: expected a model, found PyTorch weights without one: "
        "save it with torch.export.save or torch.jit.save instead"
    )


def _load(path: Path, spec: Spec, kind: str, trust: bool) -> "TorchModel":
    if kind == "function":
        return load_function(str(path), spec, trust)
    return (load_program if kind == "exported program" else load_script)(path, spec, trust)


LOADER = Loader("PyTorch", _recognise, _load)
