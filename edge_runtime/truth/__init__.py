"""What was right, when it is known later: truth joined to predictions, and how right a model is.

::

    published predictions ──> memory.py ──> joiner.py ──> figures.py ──> edge/{device}/accuracy/{model}
    edge/{device}/truth/{model}, POST /truth/{model} ──> messages.py ──┘

`live.py` is the daemon's part: the subscription, the documents, what is kept over a restart. Until the first truth of a
model comes, only its last predictions are remembered; the modules that join are imported with that truth.
"""
