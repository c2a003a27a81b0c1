"""Sinks and the edge node over configurations: nothing where there are none, and what is the same goes on."""

import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.config.tables import Config
from edge_runtime.daemon.outputs import Outputs
from edge_runtime.daemon.plan import describe_plan, make_plan
from edge_runtime.errors import ConfigError
from edge_runtime.system.clock import Clock
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.waiting import patient

DEVICE = """
[device]
id = "room"
[[source]]
name = "climate"
type = "mqtt"
topics = ["s/{key}"]
[[model]]
name = "comfort"
bundle = "comfort.onnx"
source = "climate"
[upstream]
url = "mqtt://localhost:1"
"""
FILE = '[[sink]]\nname = "log"\ntype = "file"\npath = "p.jsonl"\n'
SIREN = '[[sink]]\nname = "siren"\ntype = "command"\nargv = ["/bin/true"]\nwhen = "always"\n'
LAZY = """
import sys
from pathlib import Path
from edge_runtime.config.load import load_config
from edge_runtime.daemon.assembly import Assembly
from edge_runtime.daemon.plan import describe_plan, make_plan
make_plan(load_config(Path(sys.argv[1])))
found = [name for name in sys.modules if name.startswith(("edge_runtime.sinks", "edge_runtime.sparkplug"))]
assert not found, found
assert "edge_runtime.delivery.further_payloads" not in sys.modules
"""


def _config(folder: Path, more: str = "") -> Config:
    builders.classification(name="comfort").save(folder / "comfort.onnx")
    path = folder / "device.toml"
    path.write_text(DEVICE + more)
    return load_config(path)


@pytest.fixture
def outputs(tmp_path: Path) -> Iterator[Outputs]:
    """On a loop that does not run."""
    loop = Loop()
    counters: defaultdict[str, Counters] = defaultdict(Counters)

    def facts(*_: Any) -> dict[str, Any]:
        raise AssertionError("nothing is predicted here")

    made = Outputs(loop, counters, folder=tmp_path, clock=Clock(lambda: True), facts=facts, on_fault=lambda: None)
    yield made
    made.drain()
    made.end(lambda *_: True, 1.0)
    loop.close()


def test_a_device_without_sinks_imports_nothing_of_them(tmp_path: Path) -> None:
    """Nor of Sparkplug, nor of lists of payloads."""
    _config(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LAZY, str(tmp_path / "device.toml")],
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_reload_keeps_the_sinks_whose_table_is_the_same(tmp_path: Path, outputs: Outputs) -> None:
    """One that changed is ended and made anew; one that is gone leaves health."""
    outputs.fit(_config(tmp_path))
    assert outputs.document() == {"sinks": {}}
    outputs.fit(_config(tmp_path, FILE + SIREN))
    assert outputs._sinks is not None
    log, siren = (outputs._sinks._open[name][1] for name in ("log", "siren"))
    assert outputs.document()["sinks"]["siren"] == {"state": "/bin/true: ready"}
    outputs.fit(_config(tmp_path, FILE + SIREN.replace("true", "false")))
    assert outputs._sinks._open["log"][1] is log
    assert outputs._sinks._open["siren"][1] is not siren
    outputs.fit(_config(tmp_path, FILE))
    assert list(outputs.document()["sinks"]) == ["log"]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (FILE + FILE, 'sink "log".name: expected a name of its own, found that of another sink'),
        (FILE + FILE.replace('"log"', '"b"'), 'sink "b".path: expected a file of its own, found that of another sink'),
        (
            FILE + 'models = ["comfrt"]',
            'sink "log".models: expected names of models, found "comfrt": the models are "comf',
        ),
        (FILE + 'when = "alarm"', 'sink "log".when: "alarm" needs a model that can raise one'),
        (SIREN.replace('when = "always"\n', ""), 'sink "siren".when: "alarm" needs a model that can raise one'),
        (FILE.replace("p.jsonl", "."), 'sink[0] "log".path: expected the path of a file, found the folder'),
        (SIREN.replace('["/bin/true"]', "[]"), 'sink[0] "siren".argv: expected a program and its arguments'),
        (FILE.replace('"file"', '"fil"'), 'sink[0] "log".type: expected "file", "http" or "command", found "fil"'),
        ('[sparkplug]\ngroup = "a/b"', "sparkplug.group: expected a name of 1 to 200 characters without / + #"),
        ("[sparkplug]", "sparkplug.group: expected a name"),
    ],
)
def test_what_is_wrong_with_a_table_is_one_sentence_at_its_place(tmp_path: Path, more: str, expected: str) -> None:
    """As `check` and a reload say it."""
    with pytest.raises(ConfigError) as caught:
        make_plan(_config(tmp_path, more))
    assert expected in str(caught.value)
    assert len(caught.value.mistakes) <= 2


@pytest.mark.parametrize(
    ("payload", "topics", "expected"),
    [
        (
            "[]",
            "s/{key}",
            'model "comfort".payload: expected at least one of json, msgpack, values, found an array of 0',
        ),
        (
            '["json", "json"]',
            "s/{key}",
            "model \"comfort\".payload: expected every convention once, found 'json' twice",
        ),
        (
            '["json", "values"]',
            "edge/+/+/+/score",
            'source "climate".topics: expected topics that model "comfort" does not publish to, found "edge/+/+/+/',
        ),
    ],
)
def test_what_is_wrong_with_a_list_of_payloads_is_one_sentence(
    tmp_path: Path, payload: str, topics: str, expected: str
) -> None:
    """As of one payload."""
    builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    text = DEVICE.replace("s/{key}", topics).replace("[upstream]", f"payload = {payload}\n[upstream]")
    (tmp_path / "device.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        make_plan(load_config(tmp_path / "device.toml"))
    assert expected in str(caught.value)
    assert len(caught.value.mistakes) == 1


def test_what_runs_is_described_without_a_secret(tmp_path: Path) -> None:
    """A line for each sink, and one for the node; the query of an address may hold a key."""
    more = FILE + '[[sink]]\nname = "web"\ntype = "http"\nurl = "http://h/p?key=s3cret"\n' + SIREN
    lines = describe_plan(make_plan(_config(tmp_path, more + '[sparkplug]\ngroup = "g"\n')))
    assert lines[-4:] == [
        f"sink log: file {tmp_path / 'p.jsonl'}, takes always",
        "sink web: http http://h/p, takes always",
        "sink siren: command /bin/true, takes always",
        "sparkplug: node room of group g",
    ]
