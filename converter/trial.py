"""A fresh process loads a bundle and answers its golden rows at batch 1, 2 and 7, before the build reports success.

Run as a script by `package.py`; prints its peak memory in bytes. It imports what a device imports: numpy, onnxruntime
and the manifest, not onnx.
"""

import base64
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from edge_runtime.bundle.int8 import set_exact
from edge_runtime.bundle.manifest import INPUT_NAME, METADATA_KEY, SelfTest, Tensor, output_ports, read_manifest
from edge_runtime.bundle.onnx_file import read_onnx

BATCHES = (1, 2, 7)


def array(tensor: Tensor) -> np.ndarray:
    """A golden tensor as an array."""
    flat = np.frombuffer(base64.b64decode(tensor.data), dtype=np.dtype(tensor.dtype).newbyteorder("<"))
    return flat.reshape(tensor.shape)


def main(path: str) -> str | None:
    """Test a bundle; return its fault, or None.

    A bundle with int8 products is tested twice: with fused products, exact on every processor, and with unfused
    operators, as on a processor without such kernels.
    """
    int8 = read_onnx(Path(path).read_bytes(), path).int8
    levels = onnxruntime.GraphOptimizationLevel
    for level, words in ((levels.ORT_ENABLE_ALL, ""), (levels.ORT_DISABLE_ALL, "unfused, ")):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        options.graph_optimization_level = level
        set_exact(options, int8)
        problem = _tried(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), path)
        if problem is not None:
            return words + problem
        if int8 == "none":
            return None
    return None


def _tried(session: onnxruntime.InferenceSession, path: str) -> str | None:
    """The fault in the answers of a session, or None."""
    manifest = read_manifest(session.get_modelmeta().custom_metadata_map[METADATA_KEY], path)
    golden = manifest.selftest
    if golden is None:
        return "it has no golden rows"
    rows = array(golden.input).astype(np.float32)
    names = list(output_ports(manifest))
    for batch in BATCHES if manifest.batch_free else (1,):
        # Devices run row by row where a call has one scale or one condition for all rows.
        exact = batch == 1 or (manifest.batch_invariant and manifest.quantization.get("method") != "dynamic")
        picked = np.arange(max(batch, len(rows))) % len(rows)
        for start in range(0, len(picked) - batch + 1, batch):
            index = picked[start : start + batch]
            feeds = {INPUT_NAME: rows[index]}
            for state in manifest.state:
                feeds[state.input] = np.zeros((batch, *state.shape), dtype=np.float32)
            for name, found in zip(names, session.run(names, feeds), strict=True):
                if (fault := _fault(golden, name, found, index, exact=exact)) is not None:
                    return f"at batch {batch} {fault}"
    return None


def _fault(golden: SelfTest, name: str, found: NDArray[Any], index: NDArray[Any], *, exact: bool) -> str | None:
    """The fault of one output in a batch of golden rows, or None; `exact` compares the numbers too."""
    expected = array(golden.outputs[name])[index]
    every = golden.every.get(name, 1)
    found = found if every == 1 else found.reshape(len(found), -1)[:, ::every]
    if found.shape != expected.shape:
        return f"its {name} has shape {found.shape}, expected {expected.shape}"
    if found.dtype == np.int64:
        wrong = int(np.sum(found != expected)) if exact else 0
        return f"{wrong} of its {name}s differ from the golden ones" if wrong > golden.label_mismatches else None
    if not np.isfinite(found).all():
        return f"its {name} is not finite"
    if exact and not np.allclose(found, expected, rtol=golden.rtol, atol=golden.atols.get(name, golden.atol)):
        return f"its {name} is off by {np.max(np.abs(found - expected)):.3g}"
    return None


def peak_bytes() -> int:
    """The high-water mark of this process's resident memory."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    problem = main(sys.argv[1])
    if problem:
        sys.exit(problem)
    sys.stdout.write(f"{peak_bytes()}\n")
