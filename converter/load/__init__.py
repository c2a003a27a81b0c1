"""Loaders: a file for each framework; all return a `SourceModel`. `open_model` selects one by the bytes of the file.

A loader is a file with a `LOADER` (`kind.py`) and a line in `LOADERS`.
"""

import importlib
from pathlib import Path

from converter.load.kind import Loader, ModelFile
from converter.load.source import SourceModel
from converter.spec import Spec
from edge_runtime.errors import CommandError

# In the order in which they test a file. HDF5 comes before pickles, because only its first bytes are read; ONNX comes
# last, because files of many other kinds may begin with its first field.
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
        spec: the specification, for facts that the file lacks.
        trust: whether code inside the file may run.

    Raises:
        CommandError: it cannot be loaded; the text gives the reason and the remedy.
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
