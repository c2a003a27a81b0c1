"""Sources of different kinds joined to one: what makes a reading, what is too old, and what `check` refuses."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.daemon.plan import make_plan
from edge_runtime.errors import ConfigError
from edge_runtime.readings import Batch
from edge_runtime.stream.sources.kind import Wiring
from edge_runtime.system.counters import Counters
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.waiting import Deadline

PATIENCE_S = 60.0
CHANNELS = ("temperature", "power")


def device(folder: Path, join: str, model_source: str = "room") -> Path:
    """A device that joins a file and a program."""
    builders.anomaly(channels=CHANNELS).save(folder / "m.onnx")
    program = folder / "program.py"
    program.write_text("import time\nfor n in range(3):\n    print('{\"p\":%d}' % n, flush=True)\ntime.sleep(600)\n")
    (folder / "temp").write_text("21500\n")
    path = folder / "device.toml"
    path.write_text(f"""[device]
id = "golden"
[upstream]
url = "mqtt://localhost"
[[model]]
name = "m"
bundle = "m.onnx"
source = "{model_source}"
[[source]]
name = "board"
type = "sysfs"
interval = 0.02
[source.channels]
temperature = {{ path = "{folder}/temp", scale = 0.001, unit = "°C" }}
[[source]]
name = "meter"
type = "command"
argv = ["{sys.executable}", "{program}"]
[source.channels]
power = "p"
[[source]]
name = "room"
type = "join"
{join}
""")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[[str], tuple[Loop, list[list[float]], Counters]]]:
    """Start a join as the daemon does, by its plan."""
    begun: list[Any] = []

    def begin(join: str) -> tuple[Loop, list[list[float]], Counters]:
        config = load_config(device(tmp_path, join))
        (planned,) = make_plan(config).sources
        loop, counters, values = Loop(), Counters(), cast("list[list[float]]", [])

        def sink(batch: Batch) -> None:
            values.extend(batch.values.tolist())

        wiring = Wiring(
            config=config,
            channels=planned.channels,
            shape=None,
            loop=loop,
            sink=sink,
            counters=counters,
            on_state=lambda: None,
            needed=lambda: 1,
            paused=lambda: False,
            max_gap=None,
            connect=cast("Any", None),
            units=planned.units,
        )
        begun.append(planned.config.make(wiring))
        begun[-1].start()
        return loop, values, counters

    yield begin
    for source in begun:
        source.stop()


def _until(loop: Loop, reached: Callable[[], object]) -> None:
    end = Deadline(PATIENCE_S)
    while not reached():
        assert not end.over
        loop.run_once(0.02)


def test_a_file_and_a_program_make_one_reading(run: Callable[..., Any]) -> None:
    """Each new value makes one, with the latest of the other part."""
    loop, values, _ = run('of = ["board", "meter"]')
    _until(loop, lambda: values and values[-1] == [21.5, 2])
    assert all(each[0] == 21.5 for each in values)


def test_a_named_source_makes_the_readings(run: Callable[..., Any], tmp_path: Path) -> None:
    """The others are held only: the file makes readings for ever, and the program three at most."""
    loop, values, _ = run('of = ["board", "meter"]\nwhen = "board"')
    _until(loop, lambda: len(values) >= 10)
    (tmp_path / "temp").write_text("30000\n")
    _until(loop, lambda: values[-1] == [30, 2])


def test_a_part_that_has_ended_makes_no_reading_of_what_is_old(run: Callable[..., Any]) -> None:
    """It is counted as `stale`."""
    loop, values, counters = run('of = ["board", "meter"]\nmax_age = 0.2')
    _until(loop, lambda: values)
    _until(loop, lambda: counters.rejected["stale"] >= 3)
    count = len(values)
    loop.run_once(0.05)
    assert len(values) == count
    assert "found `power` of" in counters.last_rejected["stale"]["why"]


@pytest.mark.parametrize(
    ("join", "model_source", "mistake"),
    [
        ('of = ["board"]', "room", 'source "room".of: expected sources with every channel, found none with power'),
        ('of = ["board", "metre"]', "room", 'of: expected names of sources that are no joins, found "metre"'),
        (
            'of = ["board", "meter"]\nwhen = "x"',
            "room",
            'when: expected "any", "all", a source or a channel, found "x"',
        ),
        ('of = ["board", "meter"]', "meter", 'expected a source that is used by nothing else, found "meter"'),
        ("of = []", "room", "of: expected the names of sources, found an array of 0"),
        ('of = ["board", "board"]', "room", 'of: expected every source once, found "board" twice'),
    ],
)
def test_mistakes_are_named(join: str, model_source: str, mistake: str, tmp_path: Path) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match="source") as caught:
        make_plan(load_config(device(tmp_path, join, model_source)))
    assert mistake in str(caught.value)
