"""Predictions out: the outbox and its file, one file per payload convention, and the topics of the device itself."""
