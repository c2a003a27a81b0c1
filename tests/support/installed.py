"""The program as a user has it: the wheel, built once a test run and installed into an environment of its own.

The environment borrows the third-party packages of the developer's one through a path file, which is quick and
proves as much: a path file does not follow the editable installation, so `edge_runtime` and `converter` can only
come from the wheel (`tests/system/test_installed.py` holds that).
"""

import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

from tests.support.once import made_once
from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Installed:
    """Where the installed commands are."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "bin" / "python"

    @property
    def edge_runtime(self) -> Path:
        """The command `edge-runtime`."""
        return self.folder / "bin" / "edge-runtime"

    @property
    def edge_convert(self) -> Path:
        """The command `edge-convert`."""
        return self.folder / "bin" / "edge-convert"

    def run(
        self, command: Path | str, *arguments: str | Path, cwd: Path, timeout: float = 120.0, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, away from the source folder. No traceback may appear, whatever happens.

        Raises:
            AssertionError: the command showed a traceback.
        """
        done = subprocess.run(
            [str(command), *map(str, arguments)],
            cwd=cwd,
            env=clean_environment() | environment,
            capture_output=True,
            text=True,
            timeout=patient(timeout),
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr + done.stdout, f"{command} {arguments}:\n{done.stderr}"
        return done


def clean_environment() -> dict[str, str]:
    """The environment of this process without what would let a child import the source folder."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))
    }


def install(shared: Path) -> Installed:
    """Build the wheel and install it under `shared`, once, however many test processes ask at the same time."""
    wheel = build_wheel(shared)

    def make(folder: Path) -> None:
        venv.create(folder, symlinks=True, with_pip=False)
        python = folder / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", str(python))
        _run(*pip, "install", "--no-deps", "--no-index", "-q", str(wheel))
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = folder / "lib" / version / "site-packages"
        (packages / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    return Installed(made_once(shared / "installed", make))


def build_wheel(shared: Path) -> Path:
    """The wheel of the source folder, as `make wheel` builds it: under `shared`, once, as `install`."""

    def make(folder: Path) -> None:
        _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))

    (wheel,) = made_once(shared / "wheel", make).glob("*.whl")
    return wheel


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
