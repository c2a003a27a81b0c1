"""The one way in which tests wait: for a condition, up to a deadline, with a message that says what never came."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], what: str | Callable[[], str], deadline: float = 10.0) -> None:
    """Return as soon as `condition()` is true; fail with `what` after `deadline` seconds.

    Raises:
        AssertionError: the condition did not come true in time.
    """
    until = time.monotonic() + deadline
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"waited {deadline:g} s in vain for: {what() if callable(what) else what}")
        time.sleep(0.005)  # a poll, not a guess: the deadline above is what bounds the wait
