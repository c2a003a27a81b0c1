"""SIGHUP touches what changed: everything else goes on without losing a reading, splicing a window or going offline.

A model that answers with the first and the last reading of its window shows a wrong window at once.
"""

import itertools
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeDaemon, MakePort, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.disk_faults import LONG
from tests.support.ports import VirtualPort
from tests.support.subscriber import Subscriber
from tests.support.waiting import patient, wait_until

pytestmark = pytest.mark.system

RELOADS = 100 if LONG else 6
PAUSE_S = 0.01
LENGTH = 5


class Sensor:
    """Counts upward on a serial port, a line every hundredth of a second, until it is stopped."""

    def __init__(self, port: VirtualPort) -> None:
        self._port = port
        self._stopped = threading.Event()
        self.sent = 0
        port.write(b"\n")
        self._thread = threading.Thread(target=self._count, name="sensor", daemon=True)
        self._thread.start()

    def _count(self) -> None:
        while not self._stopped.wait(PAUSE_S):
            self._port.write(b"%d,%d\n" % (self.sent, -self.sent))
            self.sent += 1

    def stop(self) -> None:
        """Say no more."""
        self._stopped.set()
        self._thread.join(patient(10))


@pytest.fixture
def sensor(make_port: MakePort) -> Iterator[Callable[[], tuple[VirtualPort, Sensor]]]:
    """`sensor()`: a port with a sensor that counts."""
    made: list[Sensor] = []

    def make() -> tuple[VirtualPort, Sensor]:
        port = make_port("imu")
        made.append(Sensor(port))
        return port, made[-1]

    yield make
    for each in made:
        each.stop()


def _text(broker: Mosquitto, port: VirtualPort, bundle: Path, *, model: str = "", more: str = "") -> str:
    return f"""
[device]
id = "room"
health_interval = 0.5
stop_timeout = 5.0

[[source]]
name = "imu"
type = "serial"
port = "{port.path}"
fields = ["count", "minus"]

[[model]]
name = "sums"
bundle = "{bundle}"
source = "imu"
{model}

[upstream]
url = "{broker.url}"
{more}
"""


def _sums(tmp_path: Path, channels: tuple[str, ...] = ("count",), name: str = "sums") -> Path:
    """A bundle whose score is the mean of the absolute values of its window."""
    return builders.anomaly(channels=list(channels), length=LENGTH, stride=1, name=name).save(tmp_path / f"{name}.onnx")


def _reload(daemon: Daemon, text: str) -> None:
    daemon.config.write_text(text)
    before = daemon.log.count("reloaded: ")
    ready = daemon.notifications.count("READY=1")
    daemon.reload()
    wait_until(
        lambda: daemon.notifications.count("READY=1") > ready, lambda: f"the end of the reload; {daemon.log[-2000:]}"
    )
    assert daemon.log.count("reloaded: ") > before, daemon.log[-2000:]


def _centres(subscriber: Subscriber, model: str = "sums") -> list[int]:
    """Twice the mean of each window: for consecutive counts a whole number that rises by two."""
    return [round(2 * m.document["score"], 3) for m in subscriber.on(f"edge/room/{model}/-")]


def _health(subscriber: Subscriber) -> dict[str, Any]:
    document: dict[str, Any] = subscriber.on("edge/room/health")[-1].document
    return document


def test_reloads_lose_no_line_splice_no_window_and_stay_online(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    sensor: Callable[[], tuple[VirtualPort, Sensor]],
    tmp_path: Path,
) -> None:
    """Another interval, another rule of the model: each window is whole and comes once, ids and counters go on."""
    port, counting = sensor()
    bundle = _sums(tmp_path)
    text = _text(mosquitto, port, bundle)
    daemon = make_daemon(text).start()
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.wait_for(3, "edge/room/sums/")
    start = _health(subscriber)["start"]
    for number in range(RELOADS):
        changed = text.replace("health_interval = 0.5", f"health_interval = {0.5 + (number % 7 + 1) / 100}")
        if number % 2:
            changed = changed.replace('source = "imu"\n', 'source = "imu"\nmin_interval = 0.0\nmax_keys = 77\n')
        _reload(daemon, changed)
        seen = counting.sent
        wait_until(lambda seen=seen: counting.sent > seen + 3, "some more lines")  # type: ignore[misc]
    counting.stop()
    subscriber.wait_until(
        lambda _: bool(_centres(subscriber)) and _centres(subscriber)[-1] == 2 * (counting.sent - 1) - LENGTH + 1,
        "the last window",
    )
    centres = _centres(subscriber)
    assert centres == [centres[0] + 2 * step for step in range(len(centres))]
    predictions = [m.document for m in subscriber.on("edge/room/sums/-")]
    assert [p["seq"] for p in predictions] == list(range(1, len(predictions) + 1))
    assert len({p["id"] for p in predictions}) == len(predictions)
    assert [m.text for m in subscriber.on("edge/room/status") if m.text != "online"] == []
    assert daemon.log.count("port open") == 1
    assert daemon.stop() == 0
    health = _health(subscriber)
    assert health["start"] == start
    assert health["readings"] == counting.sent - centres[0] / 2 + (LENGTH - 1) / 2
    assert health["models"]["sums"]["gaps"] == 0


def test_a_port_that_is_opened_again_is_a_gap(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    sensor: Callable[[], tuple[VirtualPort, Sensor]],
    tmp_path: Path,
) -> None:
    """Another key of the source's table opens the port anew: no window holds lines from before and from after."""
    port, counting = sensor()
    text = _text(mosquitto, port, _sums(tmp_path))
    daemon = make_daemon(text).start()
    subscriber.wait_for(3, "edge/room/sums/")
    _reload(daemon, text.replace('fields = ["count", "minus"]', 'fields = ["count", "minus"]\nreopen_max = 3.0'))
    before = len(_centres(subscriber))
    subscriber.wait_for(before + 5, "edge/room/sums/")
    counting.stop()
    assert daemon.stop() == 0
    centres = _centres(subscriber)
    steps = {after - earlier for earlier, after in itertools.pairwise(centres)}
    assert steps - {2} <= {step for step in steps if step >= 2 * LENGTH}
    assert all(centre == int(centre) for centre in centres)
    assert daemon.log.count("port open") == 2
    assert _health(subscriber)["models"]["sums"]["gaps"] == 1


def test_a_model_that_is_added_leaves_port_and_windows_alone(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    sensor: Callable[[], tuple[VirtualPort, Sensor]],
    tmp_path: Path,
) -> None:
    """It wants another column of the same lines; taken out again, it publishes no more."""
    port, counting = sensor()
    bundle, other = _sums(tmp_path), _sums(tmp_path, ("minus",), "minus")
    text = _text(mosquitto, port, bundle)
    daemon = make_daemon(text).start()
    subscriber.wait_for(3, "edge/room/sums/")
    _reload(daemon, text + f'[[model]]\nname = "minus"\nbundle = "{other}"\nsource = "imu"\n')
    subscriber.wait_for(3, "edge/room/minus/")
    _reload(daemon, text)
    subscriber.wait_until(lambda _: list(_health(subscriber)["models"]) == ["sums"], "the other model to be gone")
    ended = len(_centres(subscriber, "minus"))
    subscriber.wait_for(len(_centres(subscriber)) + 5, "edge/room/sums/")
    counting.stop()
    assert daemon.stop() == 0
    assert len(_centres(subscriber, "minus")) == ended
    centres = _centres(subscriber)
    assert centres == [centres[0] + 2 * step for step in range(len(centres))]
    assert daemon.log.count("port open") == 1


def test_topics_that_change_leave_the_link_and_other_sources_alone(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """Both sources and the predictions share a connection: it is not closed, and what is dropped is unsubscribed."""
    bundle = builders.anomaly(channels=["value"], length=3, stride=1).save(tmp_path / "a.onnx")
    text = """
[device]
id = "room"
health_interval = 0.5
"""
    for name in ("one", "two"):
        text += f"""
[[source]]
name = "{name}"
type = "mqtt"
topics = ["{name}/{{key}}"]

[[model]]
name = "m-{name}"
bundle = "{bundle}"
source = "{name}"
"""
    text += f'\n[upstream]\nurl = "{mosquitto.url}"\n'
    daemon = make_daemon(text).start()
    subscriber.wait_for_text("edge/room/status", "online")
    for value in (1.0, 2.0):
        subscriber.publish("one/a", {"value": value})
    subscriber.wait_until(lambda _: _health(subscriber)["sources"]["one"].get("readings") == 2, "two readings")
    subscriber.clear()
    _reload(daemon, text.replace("two/{key}", "zwei/{key}"))
    subscriber.wait_for_text("edge/room/status", "online")
    subscriber.publish("two/a", {"value": 9.0})
    for number in range(3):
        subscriber.publish("zwei/a", {"value": float(number)})
    subscriber.publish("one/a", {"value": 3.0})
    (whole,) = subscriber.wait_for(1, "edge/room/m-one/")
    (other,) = subscriber.wait_for(1, "edge/room/m-two/")
    assert daemon.stop() == 0
    assert round(whole.document["score"], 3) == 2.0  # the window of before the reload and the reading of after
    assert round(other.document["score"], 3) == 1.0
    assert [m.text for m in subscriber.on("edge/room/status")][:-1].count("offline") == 0
    health = _health(subscriber)
    assert health["rejected"] == {}
    assert len(re.findall(r"connected to mqtt", daemon.log)) == 1


def test_another_broker_takes_over_without_touching_the_port(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    make_subscriber: MakeSubscriber,
    sensor: Callable[[], tuple[VirtualPort, Sensor]],
    tmp_path: Path,
) -> None:
    """The link is another one, the windows go on, and every prediction is delivered to one of the two connections."""
    port, counting = sensor()
    text = _text(mosquitto, port, _sums(tmp_path))
    daemon = make_daemon(text).start()
    subscriber.wait_for(3, "edge/room/sums/")
    _reload(daemon, text.replace("[upstream]\n", '[upstream]\nclient_id = "another"\n'))
    subscriber.wait_until(
        lambda _: [m.text for m in subscriber.on("edge/room/status")][-2:] == ["offline", "online"], "the new link"
    )
    subscriber.wait_for(len(_centres(subscriber)) + 5, "edge/room/sums/")
    counting.stop()
    assert daemon.stop() == 0
    centres = sorted(set(_centres(subscriber)))
    assert centres == [centres[0] + 2 * step for step in range(len(centres))]
    assert daemon.log.count("port open") == 1


def test_http_comes_goes_and_learns_the_models(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    subscriber: Subscriber,
    sensor: Callable[[], tuple[VirtualPort, Sensor]],
    free_port: int,
    tmp_path: Path,
) -> None:
    """It is added, learns a model that is added, forgets one that is taken out, and is taken out, beside the stream."""
    port, counting = sensor()
    bundle, other = _sums(tmp_path), _sums(tmp_path, ("minus",), "minus")
    text = _text(mosquitto, port, bundle)
    http = f'\n[http]\nlisten = "127.0.0.1:{free_port}"\n'
    more = f'\n[[model]]\nname = "minus"\nbundle = "{other}"\nsource = "imu"\n'
    daemon = make_daemon(text).start()
    subscriber.wait_for(3, "edge/room/sums/")

    def ready(model: str) -> int:
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{free_port}/v2/models/{model}/ready", timeout=patient(10)
            ) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    assert ready("sums") == 0
    for changed, answers in ((text + http, (200, 404)), (text + more + http, (200, 200)), (text + http, (200, 404))):
        _reload(daemon, changed)
        wait_until(lambda wanted=answers: (ready("sums"), ready("minus")) == wanted, lambda: daemon.log[-1500:], 20.0)  # type: ignore[misc]
    _reload(daemon, text)
    wait_until(lambda: ready("sums") == 0, lambda: daemon.log[-1500:], 20.0)
    subscriber.wait_for(len(_centres(subscriber)) + 3, "edge/room/sums/")
    counting.stop()
    assert daemon.stop() == 0
    centres = _centres(subscriber)
    assert centres == [centres[0] + 2 * step for step in range(len(centres))]
    assert daemon.log.count("port open") == 1


def _colours(folder: Path, name: str, texts: list[str]) -> Path:
    """A bundle whose score is the index of a text."""
    draft = builders.anomaly(channels=["colour"], length=1, name="colours")
    draft.manifest["input"]["channels"] = [{"name": "colour", "categories": texts}]
    return draft.save(folder / name)


def test_categories_that_change_are_those_of_the_readings_from_then_on(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, tmp_path: Path
) -> None:
    """The same text is another index to the bundle that comes; one that it does not know is rejected by name."""
    first = _colours(tmp_path, "first.onnx", ["red", "green", "blue"])
    second = _colours(tmp_path, "second.onnx", ["blue", "red"])
    text = f"""
[device]
id = "room"
health_interval = 0.5
[[source]]
name = "paint"
type = "mqtt"
topics = ["paint/{{key}}"]
[[model]]
name = "colours"
bundle = "{first}"
source = "paint"
[upstream]
url = "{mosquitto.url}"
"""
    daemon = make_daemon(text).start()
    subscriber.wait_for_text("edge/room/status", "online")
    for colour in ("blue", "green"):
        subscriber.publish("paint/a", {"colour": colour})
    subscriber.wait_for(2, "edge/room/colours/")
    _reload(daemon, text.replace(str(first), str(second)))
    for colour in ("blue", "green", "red"):
        subscriber.publish("paint/a", {"colour": colour})
    found = subscriber.wait_for(4, "edge/room/colours/")
    subscriber.wait_until(lambda _: _health(subscriber)["rejected"] == {"unknown_category": 1}, "the rejection")
    assert daemon.stop() == 0
    assert [round(each.document["score"], 3) for each in found] == [2.0, 1.0, 0.0, 1.0]
    assert (
        "expected one of blue, red"
        in _health(subscriber)["sources"]["paint"]["last_rejected"]["unknown_category"]["why"]
    )
