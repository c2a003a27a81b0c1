"""The house stays as `docs/ARCHITECTURE.md` draws it: rooms in one order, and imports that point down it only."""

import re
import sys

import pytest

from edge_runtime.registered import CODECS, SINKS, SOURCES, Registry
from tests.support import house
from tests.support.house import FLOORS, room

# What a device's environment holds, beside the standard library.
ON_THE_DEVICE = {"edge_runtime", "numpy", "onnxruntime", "paho", "serial", "msgspec"}
# Rooms with extras, which a device file or a command must ask for, and what these bring.
EXTRAS = {
    "batch": {"pyarrow", "dask", "distributed", "fsspec"},
    "recordings": {"pyarrow", "fsspec"},
    "fleet": {"rich"},
    "bringup": {"rich"},
    "stream": {"pymodbus"},  # in `sources/modbus_link.py` alone, which a device file with such a source asks for
}
ONLY_AT_HOME = {"demo"}  # shows the whole way, the converter's half too

MODULES = house.modules()
FILES = house.sources()
ARROWS = {
    (module, imported)
    for module, path in MODULES.items()
    for imported in house.imports(path, MODULES)
    if imported.split(".")[0] == "edge_runtime"
}


def test_every_room_has_its_floor() -> None:
    """A new folder is given a place in the order before anything is built in it."""
    assert {room(module) for module in MODULES} - set(FLOORS) == set()


def test_no_import_points_upward() -> None:
    """A room knows only the rooms below it; so there is no circle between rooms either."""
    upward = [
        f"{module} imports {imported}"
        for module, imported in sorted(ARROWS)
        if room(module) != room(imported) and FLOORS.index(room(imported)) > FLOORS.index(room(module))
    ]
    assert upward == []


def test_no_two_modules_import_each_other() -> None:
    """No circle inside a room: each module can be read after those that it imports."""
    below: dict[str, set[str]] = {}
    for module, imported in ARROWS:
        below.setdefault(module, set()).add(imported)
    done: set[str] = set()

    def descend(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module not in done:
            for each in sorted(below.get(module, ())):
                if each != module:
                    descend(each, (*way, module))
            done.add(module)

    for module in sorted(below):
        descend(module, ())


def test_the_runtime_never_imports_the_converter() -> None:
    """A device has no converter; only the demonstration shows both halves."""
    wrong = [
        f"{module} imports {imported}"
        for module, path in MODULES.items()
        for imported in house.imports(path, MODULES)
        if imported.split(".")[0] == "converter" and room(module) not in ONLY_AT_HOME
    ]
    assert wrong == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_device_needs_nothing_that_it_does_not_have(module: str) -> None:
    """numpy, onnxruntime, paho, pyserial and msgspec are all that there is, beside the standard library."""
    if room(module) in {*ONLY_AT_HOME, "commands"}:
        return
    known = ON_THE_DEVICE | EXTRAS.get(room(module), set()) | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in house.imports(MODULES[module], MODULES)} - known == set()


@pytest.mark.parametrize("registry", [SOURCES, CODECS, SINKS], ids=["sources", "codecs", "sinks"])
def test_the_registry_names_what_there_is(registry: Registry) -> None:
    """A line that leads nowhere would only show on the device that uses the word."""
    for word in registry:
        assert registry.load(word).__struct_config__.tag == word


@pytest.mark.parametrize("place", sorted(FILES))
def test_a_large_module_or_class_says_why(place: str) -> None:
    """Five hundred lines, or a class of four hundred, are two ideas, unless the docstring says why they are one."""
    assert list(house.oversized(FILES[place].read_text())) == []


def test_a_module_or_class_that_is_too_large_is_found() -> None:
    """The check itself: just at the limits, beyond them, and with a reason."""
    module = '"""Do."""\n' + "x = 1\n" * 499
    assert list(house.oversized(module)) == []
    module += "x = 1\n"
    assert list(house.oversized(module)) == ["501 lines"]
    assert list(house.oversized(module.replace("Do.", "Longer than 500 lines: one table."))) == []
    body = '"""Do."""\n\n\nclass C:\n' + "    x = 1\n" * 399
    assert list(house.oversized(body)) == []
    assert list(house.oversized(body + "    x = 1\n")) == ["class C: 401 lines"]


def test_the_page_has_a_line_for_every_module() -> None:
    """The first sentence of each docstring; `python -m tests.support.house` writes them anew."""
    text = house.PAGE.read_text()
    assert house.BEGIN in text
    assert text == house.page(text), "run: python -m tests.support.house"


def test_the_page_names_every_room_in_its_order() -> None:
    """The table of rooms goes from the roof to the ground, as the imports do."""
    text = house.PAGE.read_text().split("## The rooms", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([\w/]+?(?:\.py|/))` \| .+ \| .+ \|$", text, re.MULTILINE)
    assert [row for row in rows if not (house.ROOT / "edge_runtime" / row).exists()] == []
    rooms = [row.removesuffix(".py").removesuffix("/").replace("/", ".") for row in rows]
    named = [name for name in rooms if name in FLOORS]
    assert named == [name for name in reversed(FLOORS) if name in named]
    assert set(FLOORS) - set(named) == {"__main__"}


def test_the_page_names_the_threads_that_there_are() -> None:
    """No more and no fewer than the code makes."""
    text = house.PAGE.read_text()
    section = text.split("## Threads and processes", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, re.MULTILINE)) == house.threads()
