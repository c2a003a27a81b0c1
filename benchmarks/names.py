"""Names that every target agrees on; kept apart from `models.py`, so that no target has to import `onnx`."""

CHANNELS = ("accel_x", "accel_y", "accel_z", "gyro_x", "gyro_y", "gyro_z")
LABELS = ("ok", "loose", "worn")
TOPIC_IN = "sensors/machine"
TOPIC_OUT = "edge/bench/mlp/-"
DAEMON = "daemon"  # our own column of the table
