"""A target: checks and loads one bundle as the daemon does, and answers one window.

Usage: load_model.py BUNDLE make|always|never. `make` only makes the optimised copy. Prints the CPU seconds of loading
and of everything since the start, and the bytes of memory that the model has taken.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: F401 - its import is no part of loading

from edge_runtime.bundle.model import ModelOptions
from edge_runtime.bundle.open import open_bundle
from edge_runtime.bundle.optimised_copy import load_model
from edge_runtime.system.memory import resident_bytes

path, way = Path(sys.argv[1]), sys.argv[2]
if way == "make":
    from edge_runtime.bundle.optimised_copy_maker import make_copy

    make_copy(path, open_bundle(path).digest)
    print(0, 0, 0)
    sys.exit()
bundle = open_bundle(path)
before, began = resident_bytes(), time.process_time()
model = load_model(bundle, ModelOptions(), "always" if way == "always" else "never")
loaded = time.process_time() - began
model.run(np.zeros((1, *bundle.manifest.input.tensor_shape), np.float32))
if model.is_optimised != (way == "always"):
    sys.exit(f"expected the model {way} from its copy")
print(loaded, time.process_time(), resident_bytes() - before)
