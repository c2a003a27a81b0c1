"""`edge-runtime init`: from what a port or a topic sends to a device file that `check` accepts and `try` reads."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.config.load import load_config
from edge_runtime.errors import ConfigError
from tests.conftest import MakePort
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.installed import Installed
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient

pytestmark = pytest.mark.system


@contextmanager
def again_and_again(send: Callable[[int], None], pause: float = 0.02) -> Iterator[None]:
    """Something that sends for as long as the block runs."""
    over = threading.Event()

    def serve() -> None:
        number = 0
        while not over.wait(pause):
            send(number)
            number += 1

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(patient(10))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A model of temperature and humidity."""
    return builders.regression(channels=("temperature", "humidity"), targets=("comfort",)).save(tmp_path / "c.onnx")


def test_a_port_that_speaks_gives_a_file_that_check_accepts(
    installed: Installed, make_port: MakePort, bundle: Path, tmp_path: Path
) -> None:
    """Columns by the bundle's channels, a time in front recognised; then `try` on the same port shows readings."""
    port = make_port("imu")
    device = tmp_path / "press.toml"
    with again_and_again(lambda number: port.write(b"%d,21.5,%d\n" % (1_764_331_200 + number, number % 60))):
        done = installed.run(
            installed.edge_runtime,
            *("init", "--yes", "--bundle", bundle, "--port", port.path, "--id", "press", "-o", device),
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        assert 'fields = ["time", "temperature", "humidity"]' in device.read_text()
        assert installed.run(installed.edge_runtime, "check", device, cwd=tmp_path).returncode == 0
        shown = installed.run(installed.edge_runtime, "try", device, "--seconds", "1", cwd=tmp_path)
    assert shown.returncode == 0
    assert "prediction" in shown.stdout
    before = device.read_bytes()
    again = installed.run(
        installed.edge_runtime, "init", "--yes", "--bundle", bundle, "--port", port.path, "-o", device, cwd=tmp_path
    )
    assert (again.returncode, device.read_bytes()) == (1, before)
    assert "init overwrites nothing" in again.stderr


def test_a_broker_is_heard_and_its_topic_proposed(
    installed: Installed, mosquitto: Mosquitto, subscriber: Subscriber, bundle: Path, tmp_path: Path
) -> None:
    """Of rooms and lamps, those topics whose messages have the model's channels."""

    def publish(number: int) -> None:
        for room in ("hall", "attic"):
            subscriber.publish(f"s/{room}/climate", {"temperature": 20 + number % 3, "humidity": 40, "ts": 1764331200})
        subscriber.publish("lamp/hall", "on")

    with again_and_again(publish, 0.1):
        done = installed.run(
            installed.edge_runtime,
            *("init", "--yes", "--bundle", bundle, "--broker", mosquitto.url, "--id", "home", "--seconds", "2"),
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "home.toml").read_text()
    assert 'topics = ["s/{key}/climate"]' in text
    assert 'time = "ts"' in text
    assert 'bundle = "c.onnx"' in text, "relative: the folder may move"
    assert installed.run(installed.edge_runtime, "check", "home.toml", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--bundle", "none.onnx", "--topic", "a"], "none.onnx"),
        (["--broker", "mqtt://127.0.0.1:1"], "expected a broker"),
        (["--port", "/dev/none", "--bundle", "c.onnx", "--id", "x"], ""),
    ],
)
def test_what_is_not_there_is_said(
    installed: Installed, bundle: Path, tmp_path: Path, options: list[str], words: str
) -> None:
    """No bundle, no broker, and a port that is not plugged in yet, which is no reason to write nothing."""
    done = installed.run(installed.edge_runtime, "init", "--yes", *options, cwd=tmp_path)
    if words:
        assert done.returncode == 1
        assert words in done.stderr
        assert not list(tmp_path.glob("*.toml"))
    else:
        assert done.returncode == 0, done.stderr
        assert "look at this: /dev/none: no such port" in done.stdout


def test_without_a_model_the_file_says_what_is_missing(
    installed: Installed, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    """The model's table is there with marks in front."""
    done = installed.run(
        installed.edge_runtime,
        *("init", "--yes", "--broker", mosquitto.url, "--topic", "a/{key}", "--id", "x", "--seconds", "0.5"),
        cwd=tmp_path,
    )
    assert done.returncode == 0
    assert "there is no model in it yet" in done.stdout
    assert "# [[model]]" in (tmp_path / "x.toml").read_text()
    assert done.stdout.splitlines()[-1] == "next: edge-runtime record x.toml -o recordings/ --label NAME"
    checked = installed.run(installed.edge_runtime, "check", "x.toml", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "x.toml: good for edge-runtime record; run and try need a [[model]]" in checked.stdout
    run = installed.run(installed.edge_runtime, "run", "x.toml", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (78, "x.toml: model: expected at least one [[model]], found an array of 0\n")


def test_a_model_beside_the_line_that_says_there_is_none_is_named(tmp_path: Path) -> None:
    """The next mistake of whoever adds the first model."""
    (tmp_path / "x.toml").write_text('model = []\n[[model]]\nname = "m"\n')
    with pytest.raises(ConfigError, match=r"found `model = \[\]` beside a \[\[model\]\]: take `model = \[\]` out"):
        load_config(tmp_path / "x.toml")


def test_a_file_without_a_model_and_with_a_mistake_has_both_reported(installed: Installed, tmp_path: Path) -> None:
    """The model is asked for in the same run as everything else that is wrong."""
    source = '[[source]]\nname = "s"\ntype = "serial"\nprot = "/dev/x"\n'
    (tmp_path / "x.toml").write_text(f'model = []\n[device]\nid = "x"\n{source}')
    checked = installed.run(installed.edge_runtime, "check", "x.toml", cwd=tmp_path)
    assert checked.returncode == 78
    assert "expected at least one [[model]]" in checked.stderr
    assert "prot" in checked.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--topic", "a", "--broker", "http://x"], "--broker: expected mqtt://HOST:PORT"),
        (["--topic", "a/#/b"], "--topic: expected a topic"),
        (["--topic", "a/b+"], "--topic: expected a topic"),
        (["--topic", ""], "--topic: expected a text"),
        (["--topic", "a", "--seconds", "nan"], "--seconds: expected a number above 0"),
        (["--topic", "a", "--seconds", "-1"], "--seconds: expected a number above 0"),
        (["--topic", "a", "--id", "a/b"], "a-b would do"),
        (["--topic", "a", "--port", "/dev/none"], "expected one of them, found both"),
        (["--port", ""], "--port: expected a text"),
        (["--port", "/dev/none", "--baudrate", "0"], "--baudrate: expected more than 0"),
        (["--port", "/dev/none", "--fields", "a,_,_,a"], "found a twice"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], words: str
) -> None:
    """2, one line, and no file: no port and no broker could make such an option right."""
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--yes", *options]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(installed: Installed, tmp_path: Path) -> None:
    """A file stands where the folder of the output should be."""
    (tmp_path / "taken").write_text("")
    done = installed.run(
        installed.edge_runtime,
        *("init", "--yes", "--port", "/dev/none", "--id", "x", "-o", "taken/x.toml"),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "taken/x.toml: cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
