"""The model store of a device: which bundle is active, how another one gets in, probation, shadows and transfers."""
