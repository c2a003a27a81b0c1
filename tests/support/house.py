"""The rooms of the runtime and their order, read from the tree; `python -m tests.support.house` writes them down.

`docs/ARCHITECTURE.md` has a line for each module between its markers: the first sentence of the module's docstring.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
BEGIN = "<!-- modules: written by `python -m tests.support.house` -->"
END = "<!-- end -->"
MOST_LINES, MOST_CLASS_LINES = 500, 400

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
    "sinks",
    "sparkplug",
    "drift",
    "capture",
    "store",
    "http",
    "batch",
    "truth",  # judges as `batch` does
    "fleet",
    "daemon",
    "bringup",
    "demo",
    "commands",
    "cli",
    "command_pages",  # made of the parsers of all commands
    "fleet.deb",  # which carries them
    "__main__",
)


def modules() -> dict[str, Path]:
    """Every module of the runtime, by its dotted name."""
    found = {}
    for path in sorted((ROOT / "edge_runtime").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def sources() -> dict[str, Path]:
    """Every Python file that is held to sizes and docstrings: both programs, and what tests and figures stand on."""
    folders = (".ci", "benchmarks", "converter", "device_configs", "edge_runtime", "examples", "tests/support")
    return {str(path.relative_to(ROOT)): path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))}


def oversized(text: str) -> Iterator[str]:
    """A module of more than 500 lines, and classes of more than 400, for which the module's docstring has no reason."""
    tree = ast.parse(text)
    docstring = ast.get_docstring(tree) or ""
    if (lines := len(text.splitlines())) > MOST_LINES and "Longer than 500 lines" not in docstring:
        yield f"{lines} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and "class of more than 400" not in docstring:
            assert node.end_lineno is not None
            if (lines := node.end_lineno - node.lineno + 1) > MOST_CLASS_LINES:
                yield f"class {node.name}: {lines} lines"


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """What a module imports at any place in it, for types too: dotted names of modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path}: a relative import"
            for each in node.names:
                below = f"{node.module}.{each.name}"
                yield below if below in known else node.module
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


def threads() -> set[str]:
    """The names of the threads that the daemon makes, as they stand in the code."""
    call = re.compile(r"(?:BackgroundThread|run_beside|start_thread)\(\s*\"([\w-]+)\"")
    return {name for path in modules().values() for name in call.findall(path.read_text())}


def table() -> str:
    """A line for each module, room by room, from the roof to the ground."""
    rooms: dict[str, list[str]] = {}
    for module, path in modules().items():
        line = f"| `{path.relative_to(ROOT / 'edge_runtime')}` | {_purpose(path)} |"
        rooms.setdefault(room(module), []).append(line)
    lines = ["| module | purpose |", "|---|---|"]
    for each in reversed(FLOORS):
        lines += rooms.get(each, [])
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with the lines of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def _purpose(path: Path) -> str:
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
