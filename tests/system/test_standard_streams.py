"""Every command with standard output on a full disk, closed, or with a reader that has gone."""

import subprocess
from pathlib import Path

import pytest

from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient

pytestmark = pytest.mark.system

DEVICE = """
[device]
id = "d"

[[source]]
name = "s"
type = "replay"
files = ["readings.csv"]
speed = "full"

[[model]]
name = "comfort"
bundle = "comfort.onnx"
source = "s"

[upstream]
url = "mqtt://127.0.0.1:9"
"""
LONG = ("edge-runtime try device.toml", "edge-runtime try device.toml --json")
SHORT = ("edge-runtime --help", "edge-runtime doctor", "edge-convert inspect comfort.onnx")
OTHERS = ("edge-runtime try --help", "edge-runtime check device.toml", "edge-runtime models --store store list --json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A device file whose recording has more lines than a pipe holds."""
    builders.classification().save(tmp_path / "comfort.onnx")
    lines = "".join(f"{n % 7},{n % 5}\n" for n in range(3000))
    (tmp_path / "readings.csv").write_text(f"temperature,humidity\n{lines}")
    (tmp_path / "device.toml").write_text(DEVICE)
    (tmp_path / "store").mkdir()
    return tmp_path


def shell(installed: Installed, line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line of bash."""
    line = line.replace("edge-runtime", str(installed.edge_runtime)).replace(
        "edge-convert", str(installed.edge_convert)
    )
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )


@pytest.mark.parametrize("command", [*LONG, *SHORT, *OTHERS])
def test_output_that_cannot_be_written_is_a_failure_in_one_line(
    installed: Installed, folder: Path, command: str
) -> None:
    """`> /dev/full`: exit code 1 and the reason, and nothing of Python's own."""
    done = shell(installed, f"{command} > /dev/full", folder)
    expected = "standard output: cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, expected)


@pytest.mark.parametrize("command", [LONG[0], *SHORT])
def test_a_closed_output_is_no_output(installed: Installed, folder: Path, command: str) -> None:
    """`>&-` ends as `> /dev/null` does, with stdin and stderr closed as well; no file takes the stream's place."""
    expected = shell(installed, f"{command} > /dev/null", folder)
    for closed in (">&-", "<&- >&- 2>&-"):
        done = shell(installed, f"{command} {closed}", folder)
        assert (done.returncode, done.stderr) == (expected.returncode, "")
    assert (folder / "comfort.onnx").read_bytes() == builders.classification().to_bytes()


@pytest.mark.parametrize("command", [*LONG, *SHORT])
def test_a_reader_that_goes_away_ends_a_command_quietly(installed: Installed, folder: Path, command: str) -> None:
    """`| head -n 1`: what the reader wanted, and no complaint."""
    done = shell(installed, f"{command} | head -n 1", folder)
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")


@pytest.mark.parametrize("setting", ["NO_COLOR=1", "TERM=dumb", "NO_COLOR="])
def test_a_terminal_gets_colours_unless_they_are_unwanted(installed: Installed, folder: Path, setting: str) -> None:
    """An empty `NO_COLOR` counts as none, as no-color.org has it; tables of rich obey by themselves."""
    inside = f"env {setting} edge-runtime doctor"
    shown = shell(installed, f"TERM=xterm script -qec '{inside}' /dev/null < /dev/null", folder).stdout
    assert "onnxruntime" in shown
    assert ("\x1b[3" in shown) == (setting == "NO_COLOR=")
