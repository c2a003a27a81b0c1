"""Passwords from a program of the user, such as a token that expires: the program runs when one is needed.

Guarantee: the program is started without a shell, gets 30 seconds, and is ended with its children; its answer is kept
until shortly before the end of `password_lifetime`, counted from its start, and appears in no message. Its stderr is
discarded, since it may hold the secret. Runs in the threads of a connection, one call at a time.
"""

import threading
import time
from collections.abc import Callable, Sequence

from edge_runtime.config.load import read_password
from edge_runtime.config.tables import BrokerTable
from edge_runtime.errors import TransientError
from edge_runtime.system.child import collect_output

PATIENCE_S = 30.0
_MOST_BYTES = 65_535  # MQTT 3.1.1 section 3.1.3.5
_SHARE_AHEAD, _MOST_AHEAD_S = 0.2, 300.0  # of the lifetime: enough time for the program to fail and be run again


class PasswordError(TransientError):
    """No password is available at present."""


class PasswordCommand:
    """The password of one connection.

    Args:
        argv: the program and its arguments.
        lifetime: seconds of validity, from the start of the program; None runs it for each connection.
        clock: monotonic seconds.
    """

    def __init__(
        self, argv: Sequence[str], lifetime: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._argv = argv
        self._lifetime = lifetime
        self._clock = clock
        self._mutex = threading.Lock()
        self._password: str | None = None
        self._asked_at = 0.0

    @property
    def renew_at(self) -> float | None:
        """When to get the next one, monotonic seconds; None if it does not expire."""
        if self._lifetime is None:
            return None
        return self._asked_at + self._lifetime - min(_SHARE_AHEAD * self._lifetime, _MOST_AHEAD_S)

    def password(self) -> str:
        """The present password while it is valid; else a new one. Blocks.

        Raises:
            PasswordError: the program prints none.
        """
        with self._mutex:
            renew_at = self.renew_at
            if self._password is None or renew_at is None or self._clock() >= renew_at:
                self._ask()
            assert self._password is not None, "it has just been asked for"
            return self._password

    def renew(self) -> None:
        """Get a new one now. Blocks.

        Raises:
            PasswordError: the program prints none; the previous one stays.
        """
        with self._mutex:
            self._ask()

    def forget(self) -> None:
        """Drop a password that the broker refused: the next connection gets a new one."""
        self._password = None

    def _ask(self) -> None:
        name = self._argv[0]
        started = self._clock()
        try:
            code, output = collect_output(self._argv, most_bytes=_MOST_BYTES + 1, seconds=PATIENCE_S)
        except TimeoutError:
            raise PasswordError(f"password_command: {name} has not ended within {PATIENCE_S:g} s") from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise PasswordError(f"password_command: {name} cannot be started ({why}): look at its path") from error
        remedy = "run it by hand, as the user of this service"
        if code != 0:
            raise PasswordError(f"password_command: {name} ended with exit code {code}: {remedy}")
        line = output.split(b"\n", 1)[0].rstrip(b"\r")
        try:
            text = line.decode()
        except UnicodeDecodeError:
            text = ""
        if not text or len(line) > _MOST_BYTES:
            expected = "expected a password in UTF-8 as the first line of its output, found none"
            raise PasswordError(f"password_command: {name}: {expected}: {remedy}")
        self._password, self._asked_at = text, started


def current_password(broker: BrokerTable) -> str | None:
    """The password for one connection to a broker, from any source. Blocks if a program makes it.

    Raises:
        ConfigError: it is in a systemd credential, and systemd did not start this process.
        TransientError: there is none at present.
    """
    if broker.password_command:
        return PasswordCommand(broker.password_command, None).password()
    return read_password(broker)
