"""A target: the script that a tutorial shows, with paho's callbacks and onnxruntime's defaults.

Usage: tutorial.py PORT MODEL TOPIC_IN TOPIC_OUT. Nothing here is tuned, and nothing is made slow on purpose.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

PORT, MODEL, TOPIC_IN, TOPIC_OUT = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
FEATURES = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
LABELS = ["ok", "loose", "worn"]

session = ort.InferenceSession(MODEL)


def on_connect(client: mqtt.Client, _userdata: Any, _flags: Any, _reason_code: Any, _properties: Any) -> None:
    """Subscribe whenever the connection is made."""
    client.subscribe(TOPIC_IN, qos=1)


def on_message(client: mqtt.Client, _userdata: Any, message: mqtt.MQTTMessage) -> None:
    """Predict and publish."""
    data = json.loads(message.payload)
    window = np.array([[[data[name] for name in FEATURES]]], dtype=np.float32)
    label, scores = session.run(None, {"window": window})
    result = {
        "time": time.time(),
        "label": LABELS[int(label[0])],
        "score": float(scores[0].max()),
        "scores": {name: float(score) for name, score in zip(LABELS, scores[0], strict=True)},
    }
    client.publish(TOPIC_OUT, json.dumps(result), qos=1)


client = mqtt.Client(CallbackAPIVersion.VERSION2)
client.on_connect = on_connect
client.on_message = on_message
client.connect("127.0.0.1", PORT)
client.loop_forever()
