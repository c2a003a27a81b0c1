"""The device's half: reads sensors, runs bundles, publishes predictions. Never imports `converter`."""

import os

# onnxruntime 1.29 and later keep a usage database on disk and send it away unless this is set before their import.
# A device in a factory does neither: it writes to flash only what its owner configured, and connects to no other host.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
