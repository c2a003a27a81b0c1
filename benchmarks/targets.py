"""The targets that are measured beside each other, and how each is started.

Every one gets the same model, the same readings and the same broker; its docstring in `peers/` says what it is.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import nodered
from benchmarks.names import DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.process import Process

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
NAMES = (DAEMON, "tutorial", "floor", "wire", "echo", "node-red")
ENVIRONMENT = {"PYTHONPATH": str(ROOT)}

# The same as the installed command `edge-runtime`, without needing an installation.
COMMAND = [sys.executable, "-c", "import sys; from edge_runtime.cli import main; sys.exit(main())"]

Start = Callable[[Path, int, int, Path], Process]


@dataclass(frozen=True, slots=True)
class Target:
    """Something that answers readings with predictions. `start` takes folder, core, port of the broker and model."""

    name: str
    start: Start


def script(name: str, *arguments: str, folder: Path, core: int) -> Process:
    """Start one of the scripts in `peers/`."""
    command = [sys.executable, str(PEERS / f"{name}.py"), *arguments]
    return Process(command, core=core, log=folder / f"{name}.log", env=ENVIRONMENT)


def _tutorial(folder: Path, core: int, port: int, model: Path) -> Process:
    return script("tutorial", str(port), str(model), TOPIC_IN, TOPIC_OUT, folder=folder, core=core)


def _floor(folder: Path, core: int, port: int, model: Path) -> Process:
    return script("floor", str(port), str(model), TOPIC_IN, TOPIC_OUT, folder=folder, core=core)


def _wire(folder: Path, core: int, port: int, model: Path) -> Process:
    del model
    return script("floor", str(port), "", TOPIC_IN, TOPIC_OUT, folder=folder, core=core)


def _echo(folder: Path, core: int, port: int, model: Path) -> Process:
    del model
    return script("echo", str(port), TOPIC_IN, TOPIC_OUT, folder=folder, core=core)


def start_daemon(folder: Path, core: int, config: str) -> Process:
    """Start our daemon with a configuration text."""
    path = folder / "device.toml"
    path.write_text(config)
    return Process([*COMMAND, "run", str(path)], core=core, log=folder / "daemon.log", env=ENVIRONMENT)


def daemon_config(folder: Path, port: int, model: Path, *, topic: str = TOPIC_IN, name: str = "mlp") -> str:
    """The configuration for the plain path: one source, one model, and the outbox armed as it is by default."""
    return f"""
[device]
id = "bench"

[[source]]
name = "machine"
type = "mqtt"
topics = ["{topic}"]

[[model]]
name = "{name}"
bundle = "{model}"
source = "machine"

[upstream]
url = "mqtt://127.0.0.1:{port}"

[outbox]
path = "{folder / "outbox.db"}"
"""


def _daemon(folder: Path, core: int, port: int, model: Path) -> Process:
    return start_daemon(folder, core, daemon_config(folder, port, model))


def targets(only: set[str] | None = None) -> list[Target]:
    """The targets that are wanted and can be run here; what is left out for want of a program is printed."""
    found = [
        Target(DAEMON, _daemon),
        Target("tutorial", _tutorial),
        Target("floor", _floor),
        Target("wire", _wire),
        Target("echo", _echo),
    ]
    if only is None or "node-red" in only:
        packages = nodered.install()
        if packages is not None:
            found.append(
                Target(
                    "node-red",
                    lambda folder, core, port, model: nodered.start(packages, folder, core, port, model=model),
                )
            )
    return [target for target in found if only is None or target.name in only]
