"""`edge-runtime check`, and `run` before it opens anything: every mistake has one line and exit code 78."""

from pathlib import Path

import pytest

from tests.support import builders
from tests.support.installed import Installed

pytestmark = pytest.mark.system

DEVICE = """
[device]
id = "room"

[[source]]
name = "climate"
type = "mqtt"
topics = ["sensors/{key}/climate"]

[[model]]
name = "comfort"
bundle = "comfort.onnx"
source = "climate"

[upstream]
url = "mqtt://localhost:1"
"""


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device file without mistakes, beside its bundle."""
    builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    path = tmp_path / "room.toml"
    path.write_text(DEVICE)
    return path


def test_a_good_file_passes(installed: Installed, device: Path) -> None:
    """`check` exits 0 for a good file, and opens neither port nor broker."""
    done = installed.run(installed.edge_runtime, "check", device, cwd=device.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "comfort" in done.stdout


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("[device]", "[device]\nidd = 1"), ["room.toml", "idd", "id"]),
        (('id = "room"', "id = 5"), ["device.id", "5"]),
        (('type = "mqtt"', 'type = "mqt"'), ["mqt", "mqtt"]),
        (('source = "climate"', 'source = "climat"'), ["climat", "climate"]),
        (('bundle = "comfort.onnx"', 'bundle = "comfrot.onnx"'), ["comfrot.onnx", "comfort.onnx"]),
        (("[upstream]", "[upstream"), ["room.toml", "line"]),
        (("[upstream]", "[upstream]\nkeepalive = 'often'"), ["keepalive", "often"]),
    ],
)
def test_a_mistake_in_the_file_is_named(
    installed: Installed, device: Path, command: str, change: tuple[str, str], words: list[str]
) -> None:
    """A mistake is one line with its place, what was expected and what was found; the exit code is 78."""
    device.write_text(DEVICE.replace(*change))
    done = installed.run(installed.edge_runtime, command, device, cwd=device.parent)
    assert done.returncode == 78, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no ONNX at all"),
        lambda path: path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-3]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["text", "half", "short", "empty", "absent"],
)
def test_a_bundle_that_is_none_is_named(installed: Installed, device: Path, command: str, spoil: object) -> None:
    """A bundle that is missing, truncated or no ONNX is a mistake of the file that names it: exit code 78."""
    assert callable(spoil)
    spoil(device.parent / "comfort.onnx")
    done = installed.run(installed.edge_runtime, command, device, cwd=device.parent)
    assert done.returncode == 78, done.stderr
    assert "comfort.onnx" in done.stderr


def test_every_mistake_is_shown_at_once(installed: Installed, device: Path) -> None:
    """Three mistakes are three lines in one run."""
    text = DEVICE.replace('id = "room"', "id = 5").replace("topics", "topic").replace("url =", "urll =")
    device.write_text(text)
    done = installed.run(installed.edge_runtime, "check", device, cwd=device.parent)
    assert done.returncode == 78
    assert len(done.stderr.strip().splitlines()) >= 3, done.stderr


def test_a_port_that_does_not_exist_is_no_mistake(installed: Installed, device: Path) -> None:
    """What may be plugged in later is not judged."""
    serial = 'type = "serial"\nport = "/dev/serial/by-id/missing"\nfields = ["temperature", "humidity"]'
    device.write_text(DEVICE.replace('type = "mqtt"\ntopics = ["sensors/{key}/climate"]', serial))
    assert installed.run(installed.edge_runtime, "check", device, cwd=device.parent).returncode == 0


def test_a_file_that_is_not_there_is_named(installed: Installed, tmp_path: Path) -> None:
    """A missing device file is exit code 78 and one line."""
    done = installed.run(installed.edge_runtime, "check", "nowhere.toml", cwd=tmp_path)
    assert done.returncode == 78
    assert "nowhere.toml" in done.stderr


def test_a_wrong_command_is_usage(installed: Installed, tmp_path: Path) -> None:
    """An unknown command or option is exit code 2."""
    assert installed.run(installed.edge_runtime, "chekc", cwd=tmp_path).returncode == 2
    assert installed.run(installed.edge_runtime, "check", "--frobnicate", cwd=tmp_path).returncode == 2


def test_a_file_for_another_machine_is_judged_as_far_as_it_can_be(installed: Installed, device: Path) -> None:
    """Paths of the device are left out and named; a mistake that needs none of them is found all the same."""
    text = device.read_text().replace("comfort.onnx", "/var/lib/bundles/comfort.onnx")
    device.write_text(text + 'username = "u"\npassword_file = "/etc/edge-runtime/password"\n')
    arguments = (installed.edge_runtime, "check", device, "--for-device")
    strict = installed.run(*arguments[:-1], cwd=device.parent)
    assert strict.returncode == 78
    done = installed.run(*arguments, cwd=device.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "not checked" in done.stdout
    for path in ("/var/lib/bundles/comfort.onnx", "/etc/edge-runtime/password"):
        assert f"{path} is not on this machine" in done.stdout
    device.write_text(device.read_text().replace("sensors/{key}/climate", "sensors/{key"))
    wrong = installed.run(*arguments, cwd=device.parent)
    assert wrong.returncode == 78
    assert "sensors/{key" in wrong.stderr


def test_a_model_of_the_devices_store_is_left_out(installed: Installed, device: Path) -> None:
    """The store is on the device; a bundle that is here is judged, its channels too."""
    device.write_text(device.read_text().replace('bundle = "comfort.onnx"', 'bundle = "comfort"'))
    done = installed.run(installed.edge_runtime, "check", device, "--for-device", cwd=device.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'not checked: model "comfort".bundle: comfort is not on this machine' in done.stdout
