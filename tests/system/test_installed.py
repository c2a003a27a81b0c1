"""The system tests run what a user installs, and never the source folder."""

from pathlib import Path

import pytest

from tests.support.installed import ROOT, Installed

pytestmark = pytest.mark.system


@pytest.mark.parametrize("package", ["edge_runtime", "converter"])
def test_the_installed_commands_come_from_the_wheel(installed: Installed, tmp_path: Path, package: str) -> None:
    """The environment of the system tests imports our packages from the installed wheel."""
    code = f"import importlib.util; print(importlib.util.find_spec({package!r}).origin)"
    done = installed.run(installed.python, "-c", code, cwd=tmp_path)
    origin = Path(done.stdout.strip())
    assert origin.is_relative_to(installed.folder), done.stderr
    assert not origin.is_relative_to(ROOT)
