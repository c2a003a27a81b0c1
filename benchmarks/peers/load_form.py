"""A target: makes a session from one form of a model, without any check.

Usage: load_form.py BUNDLE FOLDER FORM; FORM is one of `FORMS`, and is made in FOLDER when it is not there yet. Prints
CPU seconds of loading and the bytes of memory that it has taken.
"""

import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edge_runtime.bundle.model import ModelOptions, session_settings
from edge_runtime.system.memory import resident_bytes

# What is loaded, whether by its path or from bytes, and further entries of the session's configuration.
FORMS: dict[str, tuple[str, bool, dict[str, str]]] = {
    "bundle, bytes": ("", False, {}),
    "ONNX, bytes": ("onnx", False, {}),
    "ONNX, path": ("onnx", True, {}),
    "ORT, path": ("ort", True, {}),
    "ORT, bytes used directly": ("ort", False, {"session.use_ort_model_bytes_directly": "1"}),
}
PROVIDERS = ["CPUExecutionProvider"]


def _settings(level: str) -> Any:
    settings = session_settings(ModelOptions())
    settings.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return settings


def _made(bundle: Path, folder: Path, kind: str) -> Path:
    """The optimised model in a format, as `onnxruntime` writes it."""
    path = folder / f"{bundle.stem}.{kind}"
    if not path.exists():
        settings = _settings("ORT_ENABLE_ALL")
        settings.optimized_model_filepath = str(path)
        settings.add_session_config_entry("session.save_model_format", kind.upper())
        ort.InferenceSession(str(bundle), settings, providers=PROVIDERS)
    return path


bundle, folder, form = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
kind, by_path, entries = FORMS[form]
source = _made(bundle, folder, kind) if kind else bundle
settings = _settings("ORT_DISABLE_ALL" if kind else "ORT_ENABLE_ALL")
for name, value in entries.items():
    settings.add_session_config_entry(name, value)
before, began = resident_bytes(), time.process_time()
model = str(source) if by_path else source.read_bytes()
session = ort.InferenceSession(model, settings, providers=PROVIDERS)
if not by_path:
    session._model_bytes = None  # noqa: SLF001 - as the runtime does
    del model
print(time.process_time() - began, resident_bytes() - before)
