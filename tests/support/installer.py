"""Installs bundles from a process of its own, so that whoever sends readings meanwhile is not held up.

`python -m tests.support.installer STORE` reads a path a line, installs it without a self-test, and says `done`.
"""

import subprocess
import sys
from pathlib import Path

from edge_runtime.store.store import ModelStore
from tests.support.stored import UNSIGNED, believed
from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[2]


class Installer:
    """The other end of it."""

    def __init__(self, store: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.installer", str(store)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip

    def begin(self, bundle: Path) -> None:
        """Have a bundle installed; returns at once."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{bundle}\n")

    def close(self) -> None:
        """End it.

        Raises:
            AssertionError: an install failed.
        """
        out, _ = self._process.communicate(timeout=patient(60))
        assert self._process.returncode == 0, out


def main() -> None:
    """Serve until the input ends."""
    store = ModelStore(Path(sys.argv[1]), believed)
    for line in sys.stdin:
        store.install(Path(line.strip()), UNSIGNED)


if __name__ == "__main__":
    main()
