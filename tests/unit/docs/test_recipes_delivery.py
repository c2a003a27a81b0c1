"""The recipes of CONTRIBUTING.md for payload convention, sink and HTTP route, followed literally: their code is run."""

import json
import socket
from pathlib import Path

import pytest

from edge_runtime.bundle.manifest import Input, Manifest, Output
from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import make_plan
from edge_runtime.delivery import payloads
from edge_runtime.errors import ConfigError
from edge_runtime.http import routes
from edge_runtime.http.app import App
from edge_runtime.http.live_view import Board
from edge_runtime.readings import Prediction
from edge_runtime.registered import SINKS
from edge_runtime.sinks.kind import Offered, SinkContext, SinkKindTable
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.asking import ask
from tests.support.recipes import MakeModule, code
from tests.support.waiting import patient


def device(tmp_path: Path, payload: str) -> Path:
    """A device file whose one model uses a payload convention."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    path = tmp_path / "device.toml"
    path.write_text(
        '[device]\nid = "room"\n[[source]]\nname = "climate"\ntype = "mqtt"\ntopics = ["s/{key}"]\nformat = "json"\n'
        f'[[model]]\nname = "comfort"\nbundle = "{bundle}"\nsource = "climate"\npayload = "{payload}"\n'
        f'[upstream]\nurl = "mqtt://localhost:1"\n[outbox]\npath = "{tmp_path}/outbox.db"\n'
    )
    return path


def test_a_payload_convention_by_its_recipe(
    make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file and one line, and `check`, the pipeline's encoder and the outbox's mark know the convention."""
    path = device(tmp_path, "line")
    with pytest.raises(ConfigError, match="payload: expected one of json, msgpack, values, found 'line'"):
        make_plan(load_config(path))
    make_module("payload edge_runtime/delivery/line_payload.py")
    monkeypatch.setattr(payloads, "CONVENTIONS", dict(payloads.CONVENTIONS))
    payloads.CONVENTIONS.update(json.loads("{" + code("payload line").rstrip(",") + "}"))
    monkeypatch.setattr("edge_runtime.daemon.plan.CONVENTIONS", payloads.CONVENTIONS)
    make_plan(load_config(path))
    manifest = Manifest(name="m", version="1", task="classification", input=Input(), output=Output(labels=("a", "b")))
    made = payloads.convention("line").make(
        device="d", model="comfort", source="climate", start=1, manifest=manifest, threshold=None
    )
    found = made.encode(Prediction(key="k", time=0.0, seq=1, identity=None, label="a"))
    assert found == b"line comfort k a"
    assert payloads.mark_delayed(found) == b"line comfort k a delayed"
    assert payloads.mark_delayed(b'{"a":1}') == b'{"a":1,"delayed":true}'


def test_a_sink_by_its_recipe(make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one line, and `check` knows the type; a prediction is a datagram, and a refused one is counted."""
    path = device(tmp_path, "json")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(patient(20))
        port = receiver.getsockname()[1]
        plain = path.read_text()
        path.write_text(f'{plain}[[sink]]\nname = "lamp"\ntype = "udp"\naddress = "127.0.0.1"\nport = {port}\n')
        with pytest.raises(ConfigError, match=r'type: expected "file", .* or "command", found "udp"'):
            load_config(path)
        monkeypatch.setattr(SINKS, "places", SINKS.places | json.loads("{" + code("sink line").rstrip(",") + "}"))
        make_module("sink edge_runtime/sinks/udp_sink.py")
        (table,) = load_config(path).sink
        assert isinstance(table, SinkKindTable)
        states, counters, loop = [], Counters(), Loop()
        sink = table.make(SinkContext(loop, counters, None, lambda: states.append(1)))
        sink.take(Offered("comfort/-", b'{"label":"a"}', alarm=False))
        assert receiver.recv(100) == b'{"label":"a"}'
        assert (sink.state, dict(counters.counts)) == (f"127.0.0.1:{port}: open", {"written": 1})
    sink.take(Offered("comfort/-", bytes(70_000), alarm=False))
    assert sink.state == f"127.0.0.1:{port}: cannot be sent to (Message too long)"
    assert (counters.errors, counters.dropped, states) == ({"sink_udp": 1}, {"not_sent": 1}, [1, 1])
    sink.drain()
    assert sink.is_safe
    sink.stop(1.0)
    loop.close()
    path.write_text(f'{plain}[[sink]]\nname = "lamp"\ntype = "udp"\naddress = "lamp"\nport = 7\n')
    with pytest.raises(ConfigError, match="address: expected an IPv4 address, found 'lamp'"):
        load_config(path)


def test_an_http_route_by_its_recipe(make_module: MakeModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function, its handler, one line, and the route answers, refuses and is counted as every other."""
    module = make_module("route edge_runtime/http/key_counts.py")
    names = {**vars(routes), "key_count": module.key_count}
    exec(code("route handler"), names)  # noqa: S102 - our page
    line = eval(code("route line").rstrip(","), names)  # noqa: S307 - our page
    monkeypatch.setattr(routes, "ROUTES", [*routes.ROUTES, line])
    monkeypatch.setattr("edge_runtime.http.app.ROUTES", routes.ROUTES)
    app = App([], Board(health=lambda: {"models": {"comfort": {"keys": 7}}}))
    assert ask(app, "GET", "/keys/comfort").document == {"keys": 7}
    assert ask(app, "GET", "/keys/other").status == 404
    assert ask(app, "POST", "/keys/comfort").status == 405
    assert app.requests["keys", 200] == 1
