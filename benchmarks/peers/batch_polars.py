"""A target: recordings scored by hand with polars and onnxruntime: read, cut windows, run, write the same columns.

Usage: batch_polars.py MODEL OUT LENGTH STRIDE ROWS FILES, with ROWS windows in a call of the model. One process; no
checks of any kind. Each file is a recording.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import polars as pl

from benchmarks.names import CHANNELS, LABELS

model, out, length, stride, rows, *files = sys.argv[1:]
step = int(rows)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
frames = []
for name in files:
    path = Path(name)
    read = pl.read_csv if path.suffix == ".csv" else pl.read_parquet
    columns = read(path, columns=list(CHANNELS)).select(pl.col(CHANNELS).cast(pl.Float32)).to_numpy()
    values = np.ascontiguousarray(columns)
    windows = np.lib.stride_tricks.sliding_window_view(values, int(length), axis=0)[:: int(stride)].swapaxes(1, 2)
    labels, scores = [], []
    for start in range(0, len(windows), step):
        batch = np.ascontiguousarray(windows[start : start + step])
        label, score = session.run(["label", "scores"], {"window": batch})
        labels.append(label)
        scores.append(score)
    label, score = np.concatenate(labels), np.concatenate(scores)
    table = {"label": np.array(LABELS)[label], "score": score[np.arange(len(score)), label]}
    frames.append(pl.DataFrame(table | {f"score_{name}": score[:, i] for i, name in enumerate(LABELS)}))
done = pl.concat(frames)
if out.endswith(".csv"):
    done.write_csv(out)
else:
    done.write_parquet(out)
