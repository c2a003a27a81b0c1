"""A target: `edge-runtime predict` with onnxruntime's own intra-op threads, which it does not use otherwise.

Usage: batch_intra_op.py THREADS predict ...
"""

import sys
from functools import partial

from edge_runtime import cli
from edge_runtime.batch import score
from edge_runtime.bundle.model import ModelOptions

threads = int(sys.argv.pop(1))
vars(score)["ModelOptions"] = partial(ModelOptions, threads=threads)
sys.exit(cli.main())
