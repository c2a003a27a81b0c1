"""Recorded files, read once for both users: `predict` (batch) and the source `replay`.

::

    locations.py ──> files.py ──> text.py, parquet.py, arrays.py ──> blocks.py
    paths, URLs      which, how   CSV, JSON Lines, Parquet, NumPy     what they hand over

Guarantee: a file of any length is read in pieces of bounded size; a line that is no reading is skipped and named with
its number and reason; a file that differs from its header is refused.
"""
