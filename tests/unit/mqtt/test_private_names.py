"""Every private name of a library that the device's code uses, and the bounds on the releases that have them."""

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest

from edge_runtime.errors import ConfigError
from edge_runtime.mqtt import paho_client
from edge_runtime.mqtt.paho_client import PAHO_RELEASES, PRIVATE_NAMES, check_paho

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {
    "edge_runtime/mqtt/paho_client.py": {"_create_socket", "_ssl_context", "_topic"},
    "edge_runtime/mqtt/web_socket.py": {"_create_frame", "_sendbuffer", "_socket"},
}
# The pages of the commands are made when a package is built, and `tests/unit/command_pages` shows that they are whole.
OF_ARGPARSE = {"edge_runtime/command_pages/parser_tree.py": {"_actions", "_choices_actions"}}


def own_names() -> set[str]:
    """Every private attribute that our own classes and modules define."""
    found = set()
    for path in (ROOT / "edge_runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
                found.add(node.value)  # of `__slots__`
    return found


def foreign_names(path: Path, own: set[str]) -> set[str]:
    """Private attributes that a file reads and that none of our own code sets, with what it overrides of paho."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and re.fullmatch(r"_[a-z]\w*", node.attr) and node.attr not in own:
            found.add(node.attr)
        if isinstance(node, ast.ClassDef) and any("paho" in ast.unparse(base) for base in node.bases):
            methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            of_paho = (paho.Client, paho._WebsocketWrapper)
            overridden = {name for name in methods if any(hasattr(each, name) for each in of_paho)}
            found |= {name for name in overridden if re.fullmatch(r"_[a-z]\w*", name)}
    return found


def test_no_private_name_of_a_library_is_used_beside_those_that_are_listed() -> None:
    """The list is complete: a new one has to be added here, with its library bounded and checked at the start."""
    strings = {name for names in PRIVATE_NAMES.values() for name in names}
    own = own_names() | {"_exit"}  # `os._exit` is documented
    found = {}
    for path in sorted((ROOT / "edge_runtime").rglob("*.py")):
        imports_paho = "paho" in path.read_text()
        names = foreign_names(path, own - strings if imports_paho else own)
        if names:
            found[str(path.relative_to(ROOT))] = names
    assert found == ALLOWED | OF_ARGPARSE
    assert strings == set.union(*ALLOWED.values())


def test_the_bounds_in_the_package_are_those_that_the_code_names() -> None:
    """What pip installs is within what was tested, and so is what these tests run with."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        dependencies = tomllib.load(file)["project"]["dependencies"]
    lowest, beyond = (".".join(map(str, release)) for release in PAHO_RELEASES)
    assert f"paho-mqtt>={lowest},<{beyond}" in dependencies
    present = tuple(map(int, version("paho-mqtt").split(".")[:2]))
    assert PAHO_RELEASES[0] <= present < PAHO_RELEASES[1]


def test_the_installed_paho_has_what_is_used() -> None:
    """Nothing is missing from the release of these tests."""
    check_paho()


@pytest.mark.parametrize(
    ("owner", "name"), [(owner.rpartition(".")[2], name) for owner, names in PRIVATE_NAMES.items() for name in names]
)
def test_a_paho_without_one_of_the_names_is_refused_in_a_true_sentence(
    owner: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon ends at its start with 78, and says which release it needs; it does not try to connect for ever."""
    real: Any = getattr(paho, owner)

    class Stripped:
        def __init__(self) -> None:
            self.something = 1

    by_constructor = {"_ssl_context", "_sendbuffer", "_socket"}
    for other in {name for names in PRIVATE_NAMES.values() for name in names}:
        if other != name and (hasattr(real, other) or other in by_constructor):
            setattr(Stripped, other, None)
    monkeypatch.setattr(paho, owner, Stripped)
    with pytest.raises(ConfigError) as caught:
        check_paho()
    assert caught.value.exit_code == 78
    assert f"{owner}.{name} not found" in str(caught.value)
    assert "pip install 'paho-mqtt>=2.1,<2.3'" in str(caught.value)
    assert paho_client._paho_version() in str(caught.value)
