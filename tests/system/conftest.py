"""What only the system tests need: bundles that are converted once a run, and a daemon on a small bundle."""

from pathlib import Path

import pytest

from tests.installed import Installed
from tests.workshop import Workshop


@pytest.fixture(scope="session")
def workshop(installed: Installed, shared_folder: Path) -> Workshop:
    """The workstation: trains, and converts with the installed `edge-convert`."""
    return Workshop(installed, shared_folder / "workshop")
