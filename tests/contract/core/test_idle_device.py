"""What a device holds in memory before the first reading: counted in modules and in code, the same on every machine."""

import ast
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeBroker
from tests.support import builders
from tests.support.waiting import wait_until

# Modules of ours, and the length of their code without comments and docstrings. A device file that names nothing more
# than a source, a model and the broker needs no others. Before one of these numbers rises, look whether the new module
# can be imported where its feature is configured: 200,000 characters are a megabyte of memory.
MOST_MODULES = 106
MOST_CHARACTERS = 600_000
# What only other device files, other commands or tests need.
UNUSED = {
    "_hashlib", "argparse", "asyncio", "concurrent", "csv", "dataclasses", "email", "hmac", "http", "multiprocessing",
    "onnx", "pymodbus", "secrets", "serial", "ssl", "subprocess", "tempfile", "urllib.request", "xml", "zipfile",
}  # fmt: skip
DEVICE = """
[device]
id = "idle"
[[source]]
name = "machine"
type = "mqtt"
topics = ["sensors/machine"]
[[model]]
name = "m"
bundle = "m.onnx"
source = "machine"
[upstream]
url = "{url}"
[outbox]
path = "outbox.db"
"""
PROGRAM = """
import json, signal, sys
from pathlib import Path
from edge_runtime.cli import main

def tell(*_):
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    Path("found.new").write_text(json.dumps(files))
    Path("found.new").rename("found.json")

signal.signal(signal.SIGUSR1, tell)
sys.exit(main())
"""


@pytest.fixture
def files(tmp_path: Path, make_mosquitto: MakeBroker) -> Iterator[dict[str, str | None]]:
    """The modules of a daemon that is online and has had no reading, each with its file."""
    builders.classification(name="m").save(tmp_path / "m.onnx")
    (tmp_path / "device.toml").write_text(DEVICE.format(url=make_mosquitto().url))
    log, found = tmp_path / "log", tmp_path / "found.json"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "run", "device.toml"], cwd=tmp_path, stdout=output, stderr=output
        )
    with daemon:
        try:
            wait_until(lambda: "online" in log.read_text() and "state=ok" in log.read_text(), log.read_text, 60.0)
            daemon.send_signal(signal.SIGUSR1)
            wait_until(found.exists, log.read_text, 60.0)
            yield json.loads(found.read_text())
        finally:
            daemon.terminate()


def test_an_idle_device_holds_the_code_that_it_needs(files: dict[str, str | None]) -> None:
    """No module of a feature that is not configured, and no library that only such a feature uses."""
    own = {name: file for name, file in files.items() if name.partition(".")[0] == "edge_runtime"}
    length = sum(_length(Path(file)) for file in own.values() if file is not None)
    assert len(own) <= MOST_MODULES, sorted(own)
    assert length <= MOST_CHARACTERS, length
    assert UNUSED.isdisjoint(files), UNUSED & files.keys()


def _length(file: Path) -> int:
    """The length of a module's code, written anew without comments and docstrings."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return len(ast.unparse(tree))
