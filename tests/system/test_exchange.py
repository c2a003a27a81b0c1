"""A new model on a running device: exchanged without losing or doubling a reading, and taken back when it is bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import MakeDaemon
from tests.support import builders
from tests.support.broker import Mosquitto
from tests.support.daemon import Daemon
from tests.support.devices import stored_device
from tests.support.installed import Installed
from tests.support.subscriber import Subscriber
from tests.support.waiting import wait_until

pytestmark = pytest.mark.system


class Shelf:
    """The store of the device, filled through the command as an operator would."""

    def __init__(self, installed: Installed, folder: Path) -> None:
        self._installed = installed
        self._folder = folder

    def install(self, draft: builders.Draft) -> None:
        """Install a bundle, unsigned."""
        path = draft.save(self._folder / f"{draft.manifest['name']}-{draft.manifest['version']}.onnx")
        self.run("install", str(path), "--unsigned", "allow")

    def run(self, *words: str) -> str:
        """`edge-runtime models ...`, which must succeed."""
        store = self._folder / "store"
        done = self._installed.run(self._installed.edge_runtime, "models", "--store", store, *words, cwd=self._folder)
        assert done.returncode == 0, done.stderr
        return str(done.stdout)


@pytest.fixture
def shelf(installed: Installed, tmp_path: Path) -> Shelf:
    """A store with version 1.0.0 in it."""
    shelf = Shelf(installed, tmp_path)
    shelf.install(builders.classification(name="comfort", version="1.0.0"))
    return shelf


def _send(client: Subscriber, first: int, count: int) -> None:
    for number in range(first, first + count):
        client.publish(f"sensors/k{number % 3}/climate", {"temperature": 0.1, "humidity": 0.2, "id": number})


def _newest_models(client: Subscriber) -> Any:
    found = client.on("edge/room/models")
    return found[-1].document[0] if found else {}


def _wait_for_model(client: Subscriber, version: str, state: str) -> Any:
    wait_until(
        lambda: (_newest_models(client).get("version"), _newest_models(client).get("state")) == (version, state),
        f"version {version} {state}",
        20.0,
    )
    return _newest_models(client)


def _start(make_daemon: MakeDaemon, client: Subscriber, text: str) -> Daemon:
    daemon = make_daemon(text).start()
    client.wait_for_text("edge/room/status", "online")
    return daemon


def test_an_exchange_of_models_loses_and_doubles_nothing(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, shelf: Shelf, tmp_path: Path
) -> None:
    """While readings come, three versions follow one another: every reading is answered once, and names its version."""
    daemon = _start(make_daemon, subscriber, stored_device(mosquitto, tmp_path, "probation_predictions = 20"))
    sent = 0
    for version in ("1.1.0", "1.2.0"):
        _send(subscriber, sent, 100)
        sent += 100
        shelf.install(builders.classification(name="comfort", version=version))
        daemon.wait_for_log(f"now={version}")
        _send(subscriber, sent, 100)
        sent += 100
        _wait_for_model(subscriber, version, "active")
    answers = [message.document for message in subscriber.wait_for(sent, "edge/room/comfort/")]
    assert sorted(answer["id"] for answer in answers) == sorted(
        f"room/comfort/k{number % 3}/{number}" for number in range(sent)
    )
    assert {answer["version"] for answer in answers} == {"1.0.0", "1.1.0", "1.2.0"}
    for key in ("k0", "k1", "k2"):
        of_key = [answer for answer in answers if answer["key"] == key]
        assert [answer["seq"] for answer in of_key] == list(range(1, len(of_key) + 1)), "sequence numbers go on"
    assert daemon.stop() == 0


def test_a_model_that_fails_in_service_undoes_itself(
    mosquitto: Mosquitto, make_daemon: MakeDaemon, subscriber: Subscriber, shelf: Shelf, tmp_path: Path
) -> None:
    """A bundle that answers NaN on real readings goes back to the one before it, says why, and is not tried again."""
    daemon = _start(make_daemon, subscriber, stored_device(mosquitto, tmp_path, "probation_predictions = 10"))
    _send(subscriber, 0, 20)
    _wait_for_model(subscriber, "1.0.0", "active")
    shelf.install(_poisoned("1.1.0"))
    _wait_for_model(subscriber, "1.1.0", "probation")
    _send(subscriber, 100, 10)
    found = _wait_for_model(subscriber, "1.0.0", "active")
    assert "1.1.0 failed on" in found["why"]
    subscriber.clear()
    _send(subscriber, 200, 20)
    answers = [message.document for message in subscriber.wait_for(20, "edge/room/comfort/")]
    assert {answer["version"] for answer in answers} == {"1.0.0"}
    listed = shelf.run("list")
    assert "rejected" in listed
    assert "failed on" in listed
    assert daemon.stop() == 0


def test_the_model_store_is_checked_before_anything_runs(
    mosquitto: Mosquitto, installed: Installed, tmp_path: Path
) -> None:
    """A model that is not in the store is a mistake of the configuration: exit 78 and one line."""
    path = tmp_path / "device.toml"
    path.write_text(stored_device(mosquitto, tmp_path))
    done = installed.run(installed.edge_runtime, "check", path, cwd=tmp_path)
    assert done.returncode == 78
    assert "found comfort: install it first" in done.stderr
    assert "Traceback" not in done.stderr


def _poisoned(version: str) -> builders.Draft:
    """Right on its golden vectors, but its scores are NaN wherever the temperature is exactly 0.1."""
    draft = builders.classification(name="comfort", version=version)
    graph = draft.model.graph
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415

    graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "bad_value"))
    graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan_value"))
    graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "first_channel"))
    for node in graph.node:
        for position, name in enumerate(node.output):
            if name == "scores":
                node.output[position] = "sound_scores"
        for position, name in enumerate(node.input):
            if name == "scores":
                node.input[position] = "sound_scores"
    graph.node.extend(
        [
            helper.make_node("Gather", ["window", "first_channel"], ["temperature"], axis=2),
            helper.make_node("Equal", ["temperature", "bad_value"], ["is_bad"]),
            helper.make_node("Cast", ["is_bad"], ["is_bad_number"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["is_bad_number"], ["row_is_bad"], axes=[1], keepdims=0),
            helper.make_node("Cast", ["row_is_bad"], ["row_is_bad_flag"], to=TensorProto.BOOL),
            helper.make_node("Where", ["row_is_bad_flag", "nan_value", "sound_scores"], ["scores"]),
        ]
    )
    return draft
