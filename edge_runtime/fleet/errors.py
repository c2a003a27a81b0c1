"""Errors of the work on a device, by the reaction of the caller.

::

    EdgeError
    ├── TransientError
    │   ├── AwayError       it cannot be reached now: try again, says nothing about the bundle
    │   └── BusyError       something else is under way there: wait, then try again
    └── CommandError        it failed: the bundle's or the device's fault
        └── RefusedError    it, its broker or this command does not allow it: no repetition helps
"""

from edge_runtime.errors import CommandError, TransientError


class AwayError(TransientError):
    """The device cannot be reached now; the text says why."""


class BusyError(TransientError):
    """The device is occupied by another transfer or install, which ends by itself."""


class RefusedError(CommandError):
    """Nothing was tried: a permission or an option is missing, or a class does not match."""
