"""A target: a process that holds what any Python solution must hold, and does nothing with it.

Usage: bare_process.py MODEL. numpy, onnxruntime, paho and the session, one first prediction and 200 more: the floor
for memory and for the time from start to first prediction.
"""

import sys
import time

import numpy as np
import onnxruntime as ort
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.names import CHANNELS

client = mqtt.Client(CallbackAPIVersion.VERSION2)
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
window = np.ones((1, 1, len(CHANNELS)), np.float32)
session.run(["label", "scores"], {"window": window})
print("first", flush=True)
for _ in range(200):
    session.run(["label", "scores"], {"window": window})
print("settled", flush=True)
time.sleep(600)
