"""Captures: windows worth labelling, stored on the device within a budget of bytes, read on the workstation."""
