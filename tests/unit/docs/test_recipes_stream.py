"""The recipes of CONTRIBUTING.md for a codec and a source, followed literally: its code is run."""

import json
from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import describe_plan, make_plan
from edge_runtime.errors import ConfigError
from edge_runtime.readings import Batch
from edge_runtime.registered import CODECS, SOURCES
from edge_runtime.stream.sources.kind import FramedSourceTable, SourceKindTable, Wiring
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.recipes import MakeModule, code


def line(recipe: str) -> dict[str, str]:
    """The line of a registry."""
    found: dict[str, str] = json.loads("{" + code(recipe).rstrip(",") + "}")
    return found


def device(folder: Path, source: str) -> Path:
    """A device file with one source, for a model of temperature and humidity."""
    bundle = builders.classification().save(folder / "comfort.onnx")
    path = folder / "device.toml"
    path.write_text(
        f'[device]\nid = "room"\n[[source]]\nname = "climate"\n{source}\n'
        f'[[model]]\nname = "comfort"\nbundle = "{bundle}"\nsource = "climate"\n'
        f'[upstream]\nurl = "mqtt://localhost:1"\n[outbox]\npath = "{folder}/outbox.db"\n'
    )
    return path


def test_a_codec_by_its_recipe(make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one line, and every source of frames takes the format; its keys are checked like all others."""
    keys = 'type = "mqtt"\ntopics = ["s/{key}"]\nformat = "fixed"\nfields = ["temperature", "_", "humidity"]\n'
    path = device(tmp_path, keys + "widths = [6, 1, 4]\n")
    with pytest.raises(ConfigError, match=r'format: expected "json", .* or "value", found "fixed"'):
        load_config(path)
    monkeypatch.setattr(CODECS, "places", CODECS.places | line("codec line"))
    make_module("codec edge_runtime/stream/codecs/fixed_codec.py")
    plan = make_plan(load_config(path))
    assert "mqtt s/{key}, QoS 1, fixed" in describe_plan(plan)[0]
    table, counters = plan.sources[0].config, Counters()
    assert isinstance(table, FramedSourceTable)
    decoded = table.decoder(("humidity", "temperature"), None).decode([b"  21.5;  48", b"21.5;48"], counters)
    assert decoded.values.tolist() == [[48.0, 21.5]]
    assert counters.rejected == {"malformed": 1}
    with pytest.raises(ConfigError, match="widths: expected one for each of the 3 fields, found 1"):
        load_config(device(tmp_path, keys + "widths = [6]\n"))
    with pytest.raises(ConfigError, match="widths: unknown key"):
        load_config(device(tmp_path, 'type = "replay"\nfiles = []\nwidths = [6]\n'))


def test_a_source_by_its_recipe(make_module: MakeModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file and one line, and `check` and the daemon know the type."""
    for name, text in (("t", "21.5\n"), ("h", "48\n")):
        (tmp_path / name).write_text(text)
    path = device(tmp_path, 'type = "probe"\nfiles = ["t", "h"]\n')
    with pytest.raises(ConfigError, match=r'type: expected "serial", .* or "replay", found "probe"'):
        load_config(path)
    monkeypatch.setattr(SOURCES, "places", SOURCES.places | line("source line"))
    make_module("source edge_runtime/stream/sources/probe.py")
    plan = make_plan(load_config(path))
    assert describe_plan(plan)[0] == "source climate: probe of 2 files"
    batches = run(plan.sources[0].config, load_config(path).path)
    assert batches[0].values.tolist() == [[21.5, 48.0]]
    with pytest.raises(ConfigError, match=r'source "climate".files: expected one for each of temperature, humidity'):
        make_plan(load_config(device(tmp_path, 'type = "probe"\nfiles = ["t"]\n')))


def run(table: SourceKindTable, path: str) -> list[Batch]:
    """Start a source as the daemon does, and take what it delivers first."""
    loop, batches = Loop(), list[Batch]()

    def connect(*_: object) -> None:
        raise AssertionError("this source has no broker")

    source = table.make(
        Wiring(
            config=load_config(Path(path)),
            channels=("temperature", "humidity"),
            shape=None,
            loop=loop,
            sink=batches.append,
            counters=Counters(),
            on_state=lambda: None,
            needed=lambda: 1,
            paused=lambda: False,
            max_gap=None,
            connect=connect,  # type: ignore[arg-type]  # never returns
        )
    )
    source.start()
    assert source.is_open
    source.stop()
    assert not source.is_open
    loop.close()
    return batches


@pytest.mark.parametrize("registry", [SOURCES, CODECS], ids=["sources", "codecs"])
def test_every_registered_word_is_the_tag_of_its_class(registry: object) -> None:
    """A word of the registry leads to the class that carries it, so that no choice becomes another one."""
    assert isinstance(registry, type(SOURCES))
    for word in registry:
        assert registry.load(word).__struct_config__.tag == word
