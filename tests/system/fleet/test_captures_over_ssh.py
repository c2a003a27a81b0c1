"""Captures over real ssh: from several devices, and gone on with after the network was cut."""

from pathlib import Path

import pytest

from edge_runtime.capture.folder import read_captures
from tests.support.captured import numbered, write_captures
from tests.support.waiting import patient, wait_until
from tests.system.fleet.conftest import MakeLan
from tests.system.fleet.test_fleet import outcomes, why

pytestmark = [pytest.mark.system, pytest.mark.slow]

DEVICE = """
[device]
id = "{name}"
[[source]]
name = "s"
type = "serial"
port = "/dev/null"
format = "csv"
fields = ["a"]
[upstream]
url = "mqtt://localhost"
[capture]
"""


def test_captures_of_a_fleet_are_brought_in_and_a_cut_is_gone_on_with(make_lan: MakeLan, tmp_path: Path) -> None:
    """From the state folder of each service; a device without captures fails alone."""
    lan = make_lan(3)
    here = tmp_path / "here"
    for device in lan.devices[:2]:
        write_captures(tmp_path / "made" / device.name, numbered(4_000, device=device.name), device=device.name)
        (tmp_path / f"{device.name}.toml").write_text(DEVICE.format(name=device.name))
        state = f"/var/lib/edge-runtime/{device.name}/captures"
        device.run(f"mkdir -p {state} && cp {tmp_path}/made/{device.name}/part-* {state}/")
        device.run(f"cp {tmp_path}/{device.name}.toml /etc/edge-runtime/{device.name}.toml")
    answer = lan.command("captures", "d0", "d2", "-o", here, "--json", "--quiet")
    assert answer.returncode == 1, answer.stderr
    assert outcomes(answer.stdout) == {"d0": "done", "d2": "failed"}
    assert "expected a device file" in why(answer.stdout, "d2")
    assert len(read_captures(here / "d0").windows) == 4_000
    again = lan.command("captures", "d0", "-o", here, "--json", "--quiet")
    assert outcomes(again.stdout) == {"d0": "unchanged"}

    lan.devices[1].slow_down("1mbit")
    process = lan.begin("captures", "d1", "-o", here, "--json", "--quiet")
    wait_until(lambda: _size(here / "d1") > 0, "the first bytes", 60.0)
    process.kill()
    process.communicate(timeout=patient(30))
    before = _size(here / "d1")
    assert 0 < before < _size(tmp_path / "made" / "d1")
    answer = lan.command("captures", "d1", "-o", here, "--json", "--quiet")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    windows = read_captures(here / "d1").windows
    assert [found.entry.id for found in windows] == [each.id for each in numbered(4_000, device="d1")]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("part-*")) if folder.is_dir() else 0
