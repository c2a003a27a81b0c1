"""Predictions out: one file per payload convention, and `upstream.py`, which speaks to the broker."""
