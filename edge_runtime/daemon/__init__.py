"""The running daemon: what is to run (`plan`), its wiring and life (`process`), and what outlives a start (`state`)."""
