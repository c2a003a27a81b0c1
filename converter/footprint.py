"""The memory that a model takes in a process of its own: a number of bytes on stdout.

Run as a script by `search.py`. Memory that Python, numpy and onnxruntime take before the model is loaded does not
count.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

from edge_runtime.bundle.int8 import set_exact
from edge_runtime.bundle.onnx_file import read_onnx

_RUNS = 3


def main(path: str) -> int:
    """Load the model, run it a few times on zeros at batch 1, and print the rise of the high-water mark."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 4
    set_exact(
        options, read_onnx(Path(path).read_bytes(), path).int8
    )  # as on a device that needs it: other kernels take other memory
    before = _peak_bytes()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = {
        item.name: np.zeros([size if isinstance(size, int) else 1 for size in item.shape], dtype=np.float32)
        for item in session.get_inputs()
    }
    for _ in range(_RUNS):
        session.run(None, feeds)
    return max(1, _peak_bytes() - before)


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    sys.stdout.write(f"{main(sys.argv[1])}\n")
