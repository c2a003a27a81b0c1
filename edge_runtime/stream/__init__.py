"""Readings in, verdicts out: bytes are framed, decoded, checked, windowed, scored and decided here."""
