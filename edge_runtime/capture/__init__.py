"""Captures: windows that are worth labelling, kept on the device within a budget of bytes, read on the workstation."""
