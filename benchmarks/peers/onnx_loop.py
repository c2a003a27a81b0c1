"""A target: onnxruntime alone, one prediction a call. What no runtime around it can save.

Usage: onnx_loop.py MODEL RATE SECONDS; a RATE of 0 is as fast as it goes. Prints the number of predictions.
"""

import sys
import time

import numpy as np
import onnxruntime as ort

from benchmarks.names import CHANNELS

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rate_hz, seconds = float(sys.argv[2]), float(sys.argv[3])
window = np.ones((1, 1, len(CHANNELS)), np.float32)
for _ in range(200):
    session.run(["label", "scores"], {"window": window})
cpu, start, count = time.process_time(), time.monotonic(), 0
while (now := time.monotonic()) - start < seconds:
    session.run(["label", "scores"], {"window": window})
    count += 1
    if rate_hz:
        time.sleep(max(0.0, start + count / rate_hz - now))
print(count, time.process_time() - cpu)
