"""What the converter's contract tests share: a model is saved, loaded, converted and asked, as `build` does it."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from converter.load import open_model
from converter.load.source import SourceModel
from converter.normal_form import normal_form
from converter.plan import BundlePlan, agree
from converter.quantize import Candidate, Recipe, candidate
from converter.session import run, session_of
from converter.spec import Spec


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """One model in all its forms, and their answers to the same windows: the source's, and the float ONNX's."""

    source: SourceModel
    plan: BundlePlan
    base: Candidate
    expected: Any
    found: Any


Convert = Callable[..., Converted]


@pytest.fixture
def convert(tmp_path: Path) -> Convert:
    """Save an estimator, load it again, convert it and ask both about the same rows."""

    def convert_one(
        estimator: Any, rows: NDArray[Any], spec: Spec | None = None, name: str = "model.skops"
    ) -> Converted:
        import joblib  # noqa: PLC0415
        import skops.io  # noqa: PLC0415

        path = tmp_path / name
        trust = path.suffix != ".skops"
        (joblib.dump if trust else skops.io.dump)(estimator, path)
        spec = spec or Spec()
        source = open_model(path, spec, trust)
        plan = agree(spec, source, path)
        windows = rows.astype(np.float32).reshape(len(rows), *plan.input.tensor_shape)
        base = candidate(normal_form(source.core(), plan), Recipe("none"), windows)
        return Converted(source, plan, base, source.predict(windows), run(session_of(base.model), windows))

    return convert_one


@pytest.fixture(autouse=True)
def _quiet_training() -> Iterator[None]:
    """Small training runs do not converge, and scikit-learn says so; that is no fault of ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
