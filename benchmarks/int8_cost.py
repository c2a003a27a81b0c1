"""What exact int8 products cost on this processor: bundles of int8 with and without the entry that prevents saturation.

    python -m benchmarks.int8_cost BUNDLE...

Each bundle is run one window at a time, in turns with the entry, without it, and unfused (as bundles of releases
before run on a processor that saturates); the least time of each stands in the table. Processors that do not saturate
show no difference.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_runtime.bundle.golden import golden_windows
from edge_runtime.bundle.int8 import saturates
from edge_runtime.bundle.int8_operators import EXACT_ENTRY
from edge_runtime.bundle.manifest import INPUT_NAME
from edge_runtime.bundle.open import open_bundle

ROUNDS, RUNS = 20, 50
KINDS = ("with the entry", "without", "unfused")


def main() -> int:
    """Print a line for each bundle."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.int8_cost", description=__doc__.partition("\n")[0])
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    print(f"onnxruntime {ort.__version__}, int8 {'saturates' if saturates() else 'does not saturate'} here")
    print(f"| bundle | {' | '.join(f'{kind}, us' for kind in KINDS)} | labels that differ without |")
    print("|---|---:|---:|---:|---:|")
    for path in parser.parse_args().bundles:
        print(line_of(path), flush=True)
    return 0


def line_of(path: Path) -> str:
    """The times of one bundle."""
    bundle = open_bundle(path)
    golden = bundle.manifest.selftest
    if golden is None or bundle.facts.int8 == "none":
        return f"| {path.stem} | no int8 products | | | |"
    windows = golden_windows(golden)
    sessions = [session(path.read_bytes(), kind) for kind in KINDS]
    least = [float("inf")] * len(KINDS)
    for _ in range(ROUNDS):
        for index, each in enumerate(sessions):
            for _ in range(RUNS):
                began = time.perf_counter()
                each.run(None, {INPUT_NAME: windows[:1]})
                least[index] = min(least[index], time.perf_counter() - began)
    rows = np.random.default_rng(0).permutation(np.repeat(windows, 8, axis=0))
    one, other = (each.run(None, {INPUT_NAME: rows})[0] for each in sessions[:2])
    off = int(np.sum(one != other)) if one.dtype == np.int64 else "-"
    times = " | ".join(f"{seconds * 1e6:.0f}" for seconds in least)
    return f"| {path.stem} | {times} | {off} of {len(rows)} |"


def session(model: bytes, kind: str) -> Any:
    """A session as the runtime makes it, but for what is compared."""
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 4
    if kind == "with the entry":
        settings.add_session_config_entry(*EXACT_ENTRY)
    elif kind == "unfused":
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    raise SystemExit(main())
