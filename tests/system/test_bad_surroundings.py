"""`doctor`, `try` and `init` where the machine is at fault: certificate, group, disk, clock. Each names what to do."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeBroker, MakePort
from tests.support import builders
from tests.support.broker import CertificateAuthority
from tests.support.installed import Installed
from tests.support.ports import find_free_port
from tests.support.small_disk import small_disk
from tests.support.waiting import patient

pytestmark = pytest.mark.system

SERIAL = 'type = "serial"\nport = "{port}"\nformat = "csv"\nfields = ["temperature", "humidity"]'
MQTT = 'type = "mqtt"\ntopics = ["rooms/{key}"]'
PAST = "2019-01-01 00:00:00"
FAKETIME = shutil.which("faketime")


def device(folder: Path, source: str, url: str, more: str = "") -> Path:
    """A device with one source and one model."""
    bundle = folder / "comfort.onnx"
    builders.classification().save(bundle)
    path = folder / "room.toml"
    path.write_text(
        f'[device]\nid = "room"\n[[source]]\nname = "climate"\n{source}\n'
        f'[[model]]\nname = "m"\nbundle = "{bundle}"\nsource = "climate"\n[upstream]\nurl = "{url}"\n{more}'
    )
    return path


def failures(installed: Installed, path: Path) -> dict[str, dict[str, Any]]:
    """What `doctor` calls a failure, by the check."""
    done = installed.run(installed.edge_runtime, "doctor", path, "--json", cwd=path.parent)
    found = {each["check"]: each for each in json.loads(done.stdout) if each["state"] == "failure"}
    assert done.returncode == (1 if found else 0)
    return found


def said_by_try(installed: Installed, path: Path, *before: str) -> tuple[int, str]:
    """Exit code, and the states of the sources in three seconds."""
    command = [*before, str(installed.edge_runtime)]
    done = installed.run(command[0], *command[1:], "try", path, "--json", "--seconds", "3", cwd=path.parent)
    states = [each for each in map(json.loads, done.stdout.splitlines()) if each["event"] == "state"]
    return done.returncode, json.dumps(states)


def test_a_certificate_of_an_unknown_authority(
    installed: Installed, make_mosquitto: MakeBroker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """`doctor` names `ca_file`, `try` the certificate; `init` writes a file all the same, with the reason in it."""
    broker = make_mosquitto(tls=authority)
    path = device(tmp_path, MQTT, broker.url)
    found = failures(installed, path)[f"broker {broker.url}"]
    assert found["remedy"] == "name the authority's certificate in ca_file"
    code, states = said_by_try(installed, path)
    assert code == 1
    assert "certificate" in states
    options = ("--broker", broker.url, "--topic", "rooms/{key}", "--bundle", "comfort.onnx", "--id", "new", "--yes")
    done = installed.run(installed.edge_runtime, "init", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "look at this: " in done.stdout
    assert "certificate" in done.stdout
    assert "# LOOK AT THIS: " in (tmp_path / "new.toml").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")
def test_a_user_who_is_not_in_the_group_of_the_port(
    make_port: MakePort, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each command names who may open it. The commands run once as root, so that all is imported, then as the other."""
    folder = Path("/tmp") / tmp_path_factory.mktemp("group").name
    folder.mkdir(mode=0o755)
    try:
        port = make_port("imu").path.resolve()
        os.chown(port, 0, 20)
        port.chmod(0o660)
        path = device(folder, SERIAL.format(port=port), f"mqtt://127.0.0.1:{find_free_port()}")
        code = """
import os, sys
from edge_runtime.cli import main
device, port, folder = sys.argv[1:]
commands = [["doctor", device], ["try", device, "--seconds", "0.5"],
            ["init", "--port", port, "--yes", "--id", "new", "--bundle", folder + "/comfort.onnx", "-o"]]
for each in commands:
    main([*each, folder + "/as-root.toml"] if each[-1] == "-o" else each)
os.chmod(folder, 0o777)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for each in commands:
    print("==", each[0], flush=True)
    print("code", main([*each, folder + "/new.toml"] if each[-1] == "-o" else each), flush=True)
"""
        words = [sys.executable, "-B", "-c", code, str(path), str(port), str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=patient(120))
        _, doctor, tried, made = done.stdout.split("== ")[-4:]
        assert "may not open it: it belongs to root:dialout, crw-rw----" in doctor, done.stderr
        assert "usermod -aG dialout" in doctor
        assert "not permitted: add the user of this service to the port's group" in tried
        assert "code 1" in tried
        assert "not permitted" in made
        assert "code 0" in made
        assert "Traceback" not in done.stderr
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    with small_disk(tmp_path / "full", "64k") as folder:
        filling = ["dd", "if=/dev/zero", f"of={folder}/filler", "bs=4k"]
        subprocess.run(filling, check=False, capture_output=True, timeout=patient(30))
        yield folder


def test_a_full_disk(installed: Installed, make_mosquitto: MakeBroker, tmp_path: Path, full: Path) -> None:
    """`doctor` asks for room, `try` stores nothing and works, `init` ends in one line and leaves no half file."""
    broker = make_mosquitto()
    path = device(tmp_path, MQTT, broker.url, f'[outbox]\npath = "{full}/outbox.db"\n')
    found = failures(installed, path)
    assert [each["remedy"] for name, each in found.items() if name.startswith("disk")] == [
        "make room: expected at least 16 MiB"
    ]
    code, states = said_by_try(installed, path)
    assert code == 1, "nothing was published, and nothing else is wrong"
    assert '"open": true' in states
    options = ("--broker", broker.url, "--topic", "rooms/{key}", "--bundle", "comfort.onnx", "--id", "new", "--yes")
    done = installed.run(installed.edge_runtime, "init", *options, "-o", full / "new.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"{full}/new.toml: cannot be written: No space left on device"
    assert [each.name for each in full.iterdir()] == ["filler"]


@pytest.mark.skipif(FAKETIME is None, reason="faketime is not installed")
def test_a_clock_in_the_past(
    installed: Installed, make_mosquitto: MakeBroker, authority: CertificateAuthority, tmp_path: Path
) -> None:
    """A board without a battery: `doctor` names the clock itself and as the reason of TLS; `try` does so too."""
    assert FAKETIME is not None
    broker = make_mosquitto(tls=authority)
    secured = MQTT + f'\nurl = "{broker.url}"\nca_file = "{authority.certificate}"'
    path = device(tmp_path, secured, f"mqtt://127.0.0.1:{find_free_port()}")
    clock = (FAKETIME, "--exclude-monotonic", PAST)
    done = installed.run(clock[0], *clock[1:], installed.edge_runtime, "doctor", path, "--json", cwd=tmp_path)
    found = {each["check"]: each for each in json.loads(done.stdout) if each["state"] == "failure"}
    assert "before this program was installed" in found["clock"]["found"]
    assert "2019-01-01" in found["clock"]["found"]
    assert found[f"broker {broker.url}"]["remedy"] == "set this clock"
    code, states = said_by_try(installed, path, *clock)
    assert code == 1
    assert "not yet valid" in states
    options = ("--port", "/dev/none", "--bundle", "comfort.onnx", "--id", "new", "--yes")
    done = installed.run(clock[0], *clock[1:], installed.edge_runtime, "init", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
