"""The device's half: reads sensors, runs bundles, publishes predictions. Never imports `converter`."""

__version__ = "0.1.0"
