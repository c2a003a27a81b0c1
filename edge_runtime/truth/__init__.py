"""Truth that arrives after its prediction: the two are joined, and the accuracy of each model is counted.

::

    published predictions ──> memory.py ──> joiner.py ──> figures.py ──> edge/{device}/accuracy/{model}
    edge/{device}/truth/{model}, POST /truth/{model} ──> messages.py ──┘

`live.py` is the daemon's part: the subscription, the documents, the state kept over a restart. Until the first truth of
a model arrives, only its last predictions are remembered; the modules that join are imported with that truth.
"""
