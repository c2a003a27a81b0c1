"""Every error that this project raises on purpose, as one tree, branched by what the caller can do.

::

    EdgeError                      one readable line: place, expected, found, remedy
    ├── ConfigError                correct the file and start again         exit 78, systemd does not restart
    ├── BundleError                the model file is refused                exit 1, or 78 when a configuration names it
    │   └── SignatureError         ... because no trusted key has signed it
    ├── CommandError               the command could not do what was asked  exit 1
    ├── UsageError                 an option is wrong                       exit 2
    └── TransientError             try again later; nothing is lost         handled by the stage, never an exit

Foreign exceptions are turned into one of these where they occur, with the cause kept.
"""

from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_AWAY = 3  # commands of the fleet: some devices are away or busy, and none failed
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h; named in RestartPreventExitStatus= of the unit


class EdgeError(Exception):
    """The root. `str(error)` is what a person reads, and needs no traceback beside it."""

    exit_code = EXIT_FAILED


class ConfigError(EdgeError):
    """A configuration, or a file that it names, is wrong. Carries every mistake found, not just the first."""

    exit_code = EXIT_CONFIG

    def __init__(self, mistakes: Sequence[str] | str) -> None:
        self.mistakes = (mistakes,) if isinstance(mistakes, str) else tuple(mistakes)
        super().__init__("\n".join(self.mistakes))


class BundleError(EdgeError):
    """A file is not a bundle that this runtime will run."""


class SignatureError(BundleError):
    """A bundle is unsigned, signed by a stranger, or changed after it was signed."""


class CommandError(EdgeError):
    """A command failed for a reason that its user can understand."""


class UsageError(EdgeError):
    """An option of a command that is wrong whatever the machine is like."""

    exit_code = EXIT_USAGE


class TransientError(EdgeError):
    """The outside world is not ready: a port is unplugged, a broker is down, a disk is full."""
