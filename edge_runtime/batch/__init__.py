"""Recorded files in, a row of predictions for each window out: `edge-runtime predict`.

::

    recordings/ ──> parts.py ──> score.py (in every worker) ──> chunks.py ──> outputs.py
    which files,    what each    contract, windows, model       scored        csv, jsonl,
    read how        worker does                                 parts, kept   parquet, npy, npz

Contract, windows and model are those of the stream. A part is written whole or not at all, so that a run that was
interrupted goes on where it stopped; the output takes its name when it is complete.
"""
