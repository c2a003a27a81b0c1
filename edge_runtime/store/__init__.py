"""The model store of a device: the active bundle, how another is installed, probation, shadows and transfers."""
