"""The house stays as `docs/ARCHITECTURE.md` draws it: rooms in one order, and imports that point down it only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground floor to the roof: a room imports rooms that stand before it here, and no other.
FLOORS = (
    "errors",
    "readings",
    "registered",
    "system",
    "config",
    "bundle",
    "mqtt",
    "delivery",
    "stream.framing",  # the first half of the way in, bytes -> frames -> columns, which recorded files share
    "stream.origin",
    "stream.codecs",
    "recordings",
    "stream",
    "store",
    "http",
    "batch",
    "fleet",
    "daemon",
    "demo",
    "commands",
    "cli",
    "__main__",
)
# What a device's environment holds, beside the standard library.
ON_THE_DEVICE = {"edge_runtime", "numpy", "onnxruntime", "paho", "serial", "msgspec"}
# Rooms that are extras, and that a device file must ask for, with what they bring.
EXTRAS = {
    "http": {"waitress"},
    "batch": {"pyarrow", "dask", "distributed", "fsspec"},
    "recordings": {"pyarrow", "fsspec"},
    "fleet": {"rich"},
}
ONLY_AT_HOME = {"demo"}  # shows the whole way, the converter's half too


def modules() -> dict[str, Path]:
    """Every module of the runtime, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "edge_runtime").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """What a module imports at any place in it, for types too: dotted names of modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            for each in node.names:
                below = f"{node.module}.{each.name}"
                yield below if below in MODULES else node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            named = node.args[0]
            if isinstance(named, ast.Constant):
                yield str(named.value)


def room(module: str) -> str:
    """The room that a module of the runtime stands in; the package itself is on the ground."""
    parts = module.split(".")
    if ".".join(parts[1:3]) in FLOORS:
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 else FLOORS[0]


ARROWS = {
    (module, imported)
    for module, path in MODULES.items()
    for imported in imports(path)
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
        for imported in imports(path)
        if imported.split(".")[0] == "converter" and room(module) not in ONLY_AT_HOME
    ]
    assert wrong == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_device_needs_nothing_that_it_does_not_have(module: str) -> None:
    """numpy, onnxruntime, paho, pyserial and msgspec are all that there is, beside the standard library."""
    if room(module) in {*ONLY_AT_HOME, "commands"}:
        return
    known = ON_THE_DEVICE | EXTRAS.get(room(module), set()) | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imports(MODULES[module])} - known == set()
