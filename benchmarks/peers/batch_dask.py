"""A target: Parquet scored by hand on Dask: a dataframe, `map_partitions` with onnxruntime, a folder of Parquet.

Usage: batch_dask.py MODEL OUT SCHEDULER FILES. No checks of any kind; each worker keeps its session.
"""

import sys

import dask.dataframe as dd
import numpy as np
import onnxruntime as ort
import pandas as pd
from distributed import Client

from benchmarks.names import CHANNELS, LABELS

ROWS = 4_096
_sessions: dict[str, ort.InferenceSession] = {}


def score(part: pd.DataFrame, model: str) -> pd.DataFrame:
    """The columns that `predict` writes."""
    if model not in _sessions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        _sessions[model] = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    windows = np.ascontiguousarray(part.to_numpy(np.float32)).reshape(-1, 1, len(CHANNELS))
    labels, scores = [np.empty(0, np.int64)], [np.empty((0, len(LABELS)), np.float32)]
    for start in range(0, len(windows), ROWS):
        label, found = _sessions[model].run(["label", "scores"], {"window": windows[start : start + ROWS]})
        labels.append(label)
        scores.append(found)
    label, found = np.concatenate(labels), np.concatenate(scores)
    table = {"label": np.array(LABELS)[label], "score": found[np.arange(len(found)), label]}
    return pd.DataFrame(table | {f"score_{name}": found[:, i] for i, name in enumerate(LABELS)})


if __name__ == "__main__":
    model, out, scheduler, *files = sys.argv[1:]
    names = ["score", *(f"score_{name}" for name in LABELS)]
    meta = pd.DataFrame({"label": np.array([], str)} | {name: np.array([], np.float32) for name in names})
    with Client(scheduler):
        frame = dd.read_parquet(files, columns=list(CHANNELS))
        frame.map_partitions(score, model, meta=meta).to_parquet(out, write_index=False)
