"""Recorded files in, a row of predictions for each window out: `edge-runtime predict`.

::

    recordings/ ──> parts.py ──> score.py (in every worker) ──> chunks.py ──> outputs.py
    which files,    what each    contract, windows, model       scored        csv, jsonl,
    read how        worker does                                 parts, kept   parquet, npy, npz

Contract, windows and model are those of the stream. A part is written atomically, so an interrupted run continues where
it stopped; the output gets its name when it is complete.
"""
