"""Drift: readings and answers compared with those of the training, by the reference in the bundle."""
