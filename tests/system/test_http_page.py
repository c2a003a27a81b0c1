"""The status page in a real browser; with EDGE_SCREENSHOTS=FOLDER it leaves its pictures there."""

import math
import os
import re
from pathlib import Path

import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from tests.conftest import MakeDaemon, MakeSubscriber
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.browser import CHROMIUM, Browser
from tests.support.devices import climate_device
from tests.support.page_scene import scene
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium"),
]


LINK = "document.getElementById('link').textContent"
MODELS = "document.getElementById('models').textContent"
LINES = "document.querySelectorAll('#channels polyline[points]').length"


@pytest.mark.parametrize(("width", "height", "scheme"), [(1200, 900, "dark"), (400, 1000, "light")])
def test_the_page_shows_what_has_just_been_published_and_survives_a_restart(
    mosquitto: Mosquitto,
    make_daemon: MakeDaemon,
    make_subscriber: MakeSubscriber,
    tmp_path: Path,
    free_port: int,
    width: int,
    height: int,
    scheme: str,
) -> None:
    """A prediction appears as it is made; after a restart of the daemon the page finds it again. No script error."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    device = climate_device(mosquitto, bundle) + f'\n[http]\nlisten = "127.0.0.1:{free_port}"\n'
    daemon = make_daemon(device).start()
    client = make_subscriber(mosquitto.port, "edge/#")
    url = f"http://127.0.0.1:{free_port}/"
    browser = Browser(tmp_path / scheme, url, width=width, height=height, scheme=scheme)
    try:
        wait_until(lambda: browser.evaluate(LINK) == "live", lambda: f"live: {browser.errors()}")
        for step in range(40):
            for room in ("kitchen", "cellar"):
                reading = {"temperature": 1 + math.sin(step / 6), "humidity": 1.5 + math.cos(step / 5)}
                client.publish(f"sensors/{room}/climate", reading)
                client.flush()
        client.publish("sensors/kitchen/climate", b'{"temperature": "x"}')
        wait_until(lambda: "(cellar)" in browser.evaluate(MODELS), lambda: f"{browser.evaluate(MODELS)}")
        wait_until(lambda: browser.evaluate(LINES) >= 2, "a line for each channel")
        assert (
            browser.evaluate("document.querySelectorAll('#models polyline[points]').length") == 4
        )  # labels of each key
        assert browser.evaluate("document.querySelectorAll('main').length") == 1
        assert browser.evaluate("document.getElementById('spoken').textContent").startswith("comfort: ")
        wait_until(lambda: "wrong_type" in browser.evaluate("document.body.textContent"), "the rejection")
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        daemon.stop()
        wait_until(lambda: "no answer" in browser.evaluate(LINK), "gone")
        daemon.start()
        wait_until(lambda: browser.evaluate(LINK) == "live", "back", 30)
        assert browser.errors() == []
        assert browser.hosts() == {f"127.0.0.1:{free_port}"}
    finally:
        browser.close()


# The card of a model and key by its title, and a text without line ends.
HELPERS = """
window.cardOf = title => [...document.querySelectorAll("#models h2")].find(e => e.textContent === title).parentNode;
window.flat = element => element.innerText.replace(/\\s+/g, " ");
"""  # fmt: skip


@pytest.mark.parametrize(
    ("width", "height", "scheme"), [(1200, 1400, "dark"), (1200, 1400, "light"), (400, 3050, "light")]
)
def test_the_page_shows_alarms_the_last_hour_units_and_the_last_rejections(
    tmp_path: Path, width: int, height: int, scheme: str
) -> None:
    """One card a key with its latest verdict and time, also of what came before the page was opened."""
    with scene(tmp_path) as played:
        url = f"http://127.0.0.1:{played.server.port}/"
        browser = Browser(tmp_path / "browser", url, width=width, height=height, scheme=scheme)

        def text(of: str) -> str:
            return str(browser.evaluate(f"flat(document.getElementById('{of}'))"))

        def card(title: str) -> str:
            return str(browser.evaluate(f"flat(cardOf('{title}'))"))

        try:
            wait_until(lambda: browser.evaluate(LINK) == "live", lambda: f"live: {browser.errors()}")
            wait_until(lambda: "pump-2" in browser.evaluate(MODELS), lambda: f"{browser.evaluate(MODELS)}")
            browser.evaluate(HELPERS)
            for _ in range(40):
                played.live()
            wait_until(lambda: browser.evaluate(LINES) >= 2, "a line for each channel")
            worn = r"worn.?alarm.*s ago.*last hour: 1\d\d predictions, \d+ with an alarm"
            assert re.search(worn, card("vibration (pump-1)"))
            assert re.search(r"ok .*last hour: 1\d\d predictions (?!.*alarm)", card("vibration (pump-2)"))
            assert re.search(r"temperature [\d.]+ °C, flow [\d.]+ m3/h", card("room"))
            assert "no prediction yet" in card("camera")
            recorded = "1970-01-01T00:00:33Z"  # of a replay: "20,785 days ago" says nothing
            assert re.fullmatch(
                r"19(70|69)-\d\d-\d\d \d\d:\d\d:33", browser.evaluate(f"moment('{recorded}') + ago('{recorded}')")
            )
            assert re.search(r"Alarms vibration \(pump-1\): worn since \d\d:\d\d:\d\d$", text("alarms"))
            axes = "[...cardOf('vibration (pump-2)').querySelectorAll('.row:not(.head) .axis')].map(flat).join()"
            assert browser.evaluate(axes) == "1 0,1 0"
            past = "cardOf('vibration (pump-2)').querySelector('.row:last-of-type svg:nth-of-type(2) path:not(.band)')"
            assert browser.evaluate(f"{past}.getAttribute('d').split('M').length - 1") == 2  # the pause is no line
            assert "current A" in text("channels")
            assert "memory only: predictions wait in memory" in text("state")
            refused = r"missing_channel .*last of 12 imu, line 4711: no .accel_z.: expected 3.* 0.11,9.81"
            assert re.search(refused, text("rejected"))
            assert "changes of the verdict only" in text("about")
            assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            if pictures := os.environ.get("EDGE_SCREENSHOTS"):
                name = "phone" if width < 600 else scheme
                browser.screenshot(Path(pictures) / f"status-page-{name}.png")
            assert browser.errors() == []
        finally:
            browser.close()


def test_two_taps_on_the_page_say_that_a_prediction_was_wrong(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path, free_port: int
) -> None:
    """The truth is joined to the very prediction that the page asks about, and the accuracy is shown."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    make_daemon(climate_device(mosquitto, bundle) + f'\n[http]\nlisten = "127.0.0.1:{free_port}"\n').start()
    client = make_subscriber(mosquitto.port, "edge/#")
    browser = Browser(tmp_path / "browser", f"http://127.0.0.1:{free_port}/")
    button = "[...document.querySelectorAll('.ask button')]"
    asked = "(document.querySelector('.ask') || document.querySelector('title')).textContent"
    try:
        wait_until(lambda: browser.evaluate(LINK) == "live", lambda: f"live: {browser.errors()}")
        client.publish("sensors/kitchen/climate", {"temperature": 1, "humidity": 2})
        answered = client.wait_for(1, "edge/room/comfort/kitchen")[0].document
        wait_until(lambda: "right?" in browser.evaluate(asked), lambda: browser.evaluate(MODELS))
        browser.evaluate(f"{button}[1].click()")
        right = "low" if answered["label"] == "high" else "high"
        wait_until(
            lambda: browser.evaluate(f"{button}.map(each => each.textContent).join()") == right,
            lambda: browser.evaluate("document.getElementById('models').innerHTML"),
        )
        browser.evaluate(f"{button}[0].click()")
        wait_until(lambda: browser.evaluate(asked) == f"noted: {right}", lambda: browser.evaluate(asked))
        found = client.wait_for(1, "edge/room/accuracy/comfort")[0].document
        assert (found["n"], found["confusion"]) == (1, {right: {answered["label"]: 1}})
        about = "document.getElementById('about').textContent"
        wait_until(lambda: "right 0.0 % of 1" in browser.evaluate(about), lambda: browser.evaluate(about))
        assert browser.errors() == []
    finally:
        browser.close()


def test_each_label_of_several_can_be_put_right_on_the_page(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, make_subscriber: MakeSubscriber, tmp_path: Path, free_port: int
) -> None:
    """A tap turns one label over, and all of them are sent together."""
    bundle = builders.multilabel().save(tmp_path / "alerts.onnx")
    make_daemon(climate_device(mosquitto, bundle) + f'\n[http]\nlisten = "127.0.0.1:{free_port}"\n').start()
    client = make_subscriber(mosquitto.port, "edge/#")
    browser = Browser(tmp_path / "browser", f"http://127.0.0.1:{free_port}/")
    button = "[...document.querySelectorAll('.ask button')]"
    asked = "(document.querySelector('.ask') || document.querySelector('title')).textContent"
    try:
        wait_until(lambda: browser.evaluate(LINK) == "live", lambda: f"live: {browser.errors()}")
        client.publish("sensors/kitchen/climate", {"temperature": 1, "humidity": 2, "pressure": 0.5})
        present = client.wait_for(1, "edge/room/comfort/kitchen")[0].document["present"]
        wait_until(lambda: "right?" in browser.evaluate(asked), lambda: browser.evaluate(MODELS))
        browser.evaluate(f"{button}[1].click()")
        names = f"{button}.map(each => each.textContent).join()"
        wait_until(lambda: browser.evaluate(names) == "hot,wet,loud,send", lambda: browser.evaluate(names))
        pressed = f"{button}.slice(0, 3).map(each => each.getAttribute('aria-pressed')).join()"
        assert browser.evaluate(pressed) == ",".join(str(name in present).lower() for name in ("hot", "wet", "loud"))
        browser.evaluate(f"{button}[1].click()")
        browser.evaluate(f"{button}[3].click()")
        right = [name for name in ("hot", "wet", "loud") if (name in present) != (name == "wet")]
        words = f"noted: {', '.join(right) or 'none'}"
        wait_until(lambda: browser.evaluate(asked) == words, lambda: browser.evaluate(asked))
        found = client.wait_for(1, "edge/room/accuracy/comfort")[0].document
        assert (found["n"], found["right"]) == (1, 0)
        assert found["labels"]["wet"]["false" if "wet" in present else "missed"] == 1
        assert sum(row["hit"] + row["rest"] for row in found["labels"].values()) == 2
        assert browser.errors() == []
    finally:
        browser.close()


def test_the_page_of_routes_asks_for_a_prediction(tmp_path: Path) -> None:
    """`/docs` draws every route below a proxy's path too, sends a request of its own, and shows the answer."""
    bundle = builders.classification().save(tmp_path / "comfort.onnx")
    served = Served("comfort", Model(open_bundle(bundle)), device="d", start=1)
    server = Server(App([served], Board(), prefix="/edge"), "127.0.0.1:0")
    server.start()
    browser = Browser(tmp_path / "browser", f"http://127.0.0.1:{server.port}/edge/docs/")
    predict = "[...document.querySelectorAll('details')].find(each => each.textContent.includes('/predict/{model}'))"
    try:
        wait_until(lambda: browser.evaluate("document.querySelectorAll('details').length") > 20, "the routes", 30)
        browser.evaluate(f"{predict}.querySelector('button').click()")
        wait_until(lambda: '"model":"comfort"' in browser.evaluate(f"{predict}.textContent"), "the answer", 30)
        assert browser.errors() == []
        assert browser.hosts() == {f"127.0.0.1:{server.port}"}
    finally:
        browser.close()
        server.stop()
