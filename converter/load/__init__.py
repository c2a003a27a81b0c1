"""Loaders: one framework a file, all meeting in `SourceModel`. `open_model` looks at the bytes to find the right one.

A loader is a file with a `LOADER` (`kind.py`) and a line in `LOADERS`.
"""

import importlib
from pathlib import Path

from converter.load.kind import Loader, ModelFile
from converter.load.source import SourceModel
from converter.spec import Spec
from edge_runtime.errors import CommandError

# In the order in which they are asked. HDF5 comes before pickles, because what stands behind its first bytes is not
# looked at; ONNX comes last, because a file that begins with its first field may be much else.
LOADERS = [
    "converter.load.savedmodel",
    "converter.load.torch",
    "converter.load.keras",
    "converter.load.sklearn",
    "converter.load.catboost",
    "converter.load.tflite",
    "converter.load.lightgbm",
    "converter.load.xgboost",
    "converter.load.onnx",
]


def open_model(path: Path, spec: Spec, trust: bool) -> SourceModel:
    """Load a trained model of any framework.

    Args:
        path: the file, or the folder of a SavedModel.
        spec: the specification, for what the file leaves open.
        trust: whether code inside the file may run.

    Raises:
        CommandError: it cannot be loaded; the text says why and what to do.
    """
    loaders: list[Loader] = [importlib.import_module(name).LOADER for name in LOADERS]
    is_name = not path.exists() and ":" in str(path)
    file = ModelFile(path) if is_name or path.is_dir() else ModelFile.look_at(path)
    for loader in loaders:
        kind = loader.recognise(file)
        if kind is not None:
            return loader.load(path, spec, kind, trust)
    if is_name:
        raise CommandError(f"{path}: expected a model file, found no such file")
    names = ", ".join(loader.name for loader in sorted(loaders, key=lambda loader: loader.name.lower()))
    raise CommandError(f"{path}: expected a model ({names}; pickle and joblib with --trust), found {file.in_words}")
