"""A target: Flask and onnxruntime, as a tutorial shows it, served by what `flask run` serves with.

Usage: flask_app.py PORT MODEL. Nothing here is tuned, and nothing is made slow on purpose: connections are kept where
the client wants it (HTTP/1.1), which a tutorial would not even do.
"""

import logging
import sys
import time

import numpy as np
import onnxruntime as ort
from flask import Flask, jsonify, request
from werkzeug.serving import WSGIRequestHandler

PORT, MODEL = int(sys.argv[1]), sys.argv[2]
FEATURES = ["accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z"]
LABELS = ["ok", "loose", "worn"]

app = Flask(__name__)
session = ort.InferenceSession(MODEL)


@app.post("/predict/mlp")
def predict():  # type: ignore[no-untyped-def]  # noqa: ANN201 - as a tutorial has it
    """Predict."""
    data = request.get_json()
    window = np.array([[[data[name] for name in FEATURES]]], dtype=np.float32)
    label, scores = session.run(None, {"window": window})
    return jsonify(
        time=time.time(),
        label=LABELS[int(label[0])],
        score=float(scores[0].max()),
        scores={name: float(score) for name, score in zip(LABELS, scores[0], strict=True)},
    )


if __name__ == "__main__":
    WSGIRequestHandler.protocol_version = "HTTP/1.1"
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app.run(port=PORT, threaded=True)
