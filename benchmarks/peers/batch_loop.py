"""A target: recordings scored by hand with pyarrow and onnxruntime: read a batch, run, write the same columns.

Usage: batch_loop.py MODEL IN.parquet OUT.parquet. One process, a batch of rows at a time; no checks of any kind.
"""

import sys

import numpy as np
import onnxruntime as ort
import pyarrow as pa
from pyarrow import parquet

from benchmarks.names import CHANNELS, LABELS

ROWS = 16_384

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
names = np.array(LABELS)
schema = pa.schema(
    [("label", pa.string()), ("score", pa.float32()), *((f"score_{label}", pa.float32()) for label in LABELS)]
)
with parquet.ParquetFile(sys.argv[2]) as source, parquet.ParquetWriter(sys.argv[3], schema) as sink:
    for batch in source.iter_batches(ROWS, columns=list(CHANNELS)):
        window = np.stack([column.to_numpy() for column in batch.columns], axis=1)[:, None, :]
        label, scores = session.run(["label", "scores"], {"window": np.ascontiguousarray(window, np.float32)})
        score = scores[np.arange(len(scores)), label]
        sink.write_table(pa.table([names[label], score, *scores.T], schema=schema))
