"""Recorded files, read once for both users: `predict` (batch) and the source `replay`.

::

    locations.py ──> files.py ──> text.py, parquet.py, arrays.py ──> blocks.py
    paths, URLs      which, how   CSV, JSON Lines, Parquet, NumPy     what they hand over

Guarantee: a file is read in pieces of bounded size, whatever its length; what is no reading is named with its line and
reason, and skipped; nothing is guessed about a file that is not what its header says.
"""
