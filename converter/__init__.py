"""The converter: a trained model becomes one proven, self-describing ONNX file, the bundle.

It runs on a workstation (`pip install .[convert]`), never on a device. `edge-convert build` follows one model
through `load/` (one framework a file), `normal_form.py`, `quantize.py`, `evaluate.py` and `package.py`.
Importing this package costs nothing: each module brings in what it needs when it is used.
"""

import edge_runtime  # noqa: F401 - keeps onnxruntime from reporting its use, whatever imports it first
