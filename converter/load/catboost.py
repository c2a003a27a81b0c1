"""CatBoost: binary model files (`.cbm`) with numeric features, by CatBoost's own ONNX export.

The truth is CatBoost itself, on the same float32 values.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter.load.onnx import OnnxModel
from converter.load.optional import require
from converter.spec import Spec
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats


def load(path: Path, spec: Spec) -> "CatboostModel":
    """Load a model file.

    Raises:
        CommandError: catboost is not installed, or the file is damaged or has features that are no numbers.
    """
    catboost = require("catboost", path)
    try:
        booster = catboost.CatBoost().load_model(str(path))
    except Exception as error:
        raise CommandError(f"{path}: expected a CatBoost model, found a damaged, truncated or other file") from error
    try:
        with tempfile.TemporaryDirectory(prefix="edge-convert-") as folder:
            booster.save_model(f"{folder}/model.onnx", format="onnx")
            model = onnx.load_model(f"{folder}/model.onnx")
    except Exception as error:
        text = str(error).strip().splitlines()
        raise CommandError(f"{path}: CatBoost cannot export it to ONNX: {text[0] if text else error}") from error
    return CatboostModel(model, spec, str(path), booster)


class CatboostModel(OnnxModel):
    """A CatBoost model, and its export."""

    framework = "CatBoost"

    def __init__(self, model: onnx.ModelProto, spec: Spec, place: str, booster: Any) -> None:
        self._booster = booster
        super().__init__(model, spec, place)
        self.version = str(require("catboost", place).__version__)
        names = tuple(booster.feature_names_ or ())
        self.feature_names = () if names == tuple(map(str, range(len(names)))) else names

    def _run(self, windows: Floats, session: Any = None) -> dict[str, NDArray[Any]]:
        if session is not None and session is not self._session:
            return super()._run(windows, session)
        x = np.ascontiguousarray(windows.reshape(len(windows), -1))
        names = [item.name for item in self._session.get_outputs()]
        if "label" not in names:
            return {names[0]: np.asarray(self._booster.predict(x), dtype=np.float64).reshape(len(x), -1)}
        scores = np.asarray(self._booster.predict(x, prediction_type="Probability"), dtype=np.float64)
        label = np.asarray(self._booster.predict(x, prediction_type="Class")).reshape(-1)
        found: dict[str, NDArray[Any]] = {name: scores for name in names if name != "label"}
        return {**found, "label": label.astype(str if label.dtype.kind in "USO" else np.int64)}
