"""The benchmark package. Importing it keeps onnxruntime, here and in every target, from reporting over the network.

Since 1.29 its packages for Linux open a database in the user's cache folder and upload usage events; that would be
measured along with the targets, and a benchmark has no business to send anything.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
