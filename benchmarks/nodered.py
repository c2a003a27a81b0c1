"""Node-RED with onnxruntime-node, the peer that many users would pick: installed with npm, run without its editor.

The packages go to a folder below the system's temporary one that later runs use again; the flow, the settings and
the state of a run live in the run's own folder.
"""

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.broker import free_port
from benchmarks.names import TOPIC_IN, TOPIC_OUT
from benchmarks.process import Process

NODE_RED = "node-red@4.1"
ONNXRUNTIME = "onnxruntime-node@1.30"
INSTALL_SECONDS = 300.0
PEERS = Path(__file__).resolve().parent / "peers"


def install() -> Path | None:
    """The folder with the packages, filled on the first call; None, with a printed reason, on failure."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        print("SKIPPED node-red: expected the programs node and npm, found none: install them to see this peer")
        return None
    folder = Path(tempfile.gettempdir()) / f"edge-benchmark-node-red-{os.getuid()}"
    done = folder / "installed"
    wanted = f"{NODE_RED} {ONNXRUNTIME}"
    if done.exists() and done.read_text() == wanted:
        return folder
    print(f"installing {wanted} with npm, once ...", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    # The packages' scripts would fetch GPU libraries; the CPU's are in the package.
    command = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", *wanted.split()]
    try:
        subprocess.run(command, cwd=folder, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"SKIPPED node-red: npm install failed: {error}\n{str(error.stderr)[-1000:]}")
        return None
    done.write_text(wanted)
    return folder


def start(packages: Path, folder: Path, core: int, port: int, *, model: Path) -> Process:
    """Start Node-RED with the flow `mqtt in -> function -> mqtt out`, all at QoS 1."""
    user = folder / "node-red"
    user.mkdir(exist_ok=True)
    (user / "flows.json").write_text(json.dumps(_flow(port)))
    command = [
        str(shutil.which("node")),
        str(packages / "node_modules/node-red/red.js"),
        "--settings",
        str(PEERS / "settings.js"),
        "--userDir",
        str(user),
    ]
    env = {
        "BENCH_MODEL": str(model),
        "BENCH_UI_PORT": str(free_port()),
        "NODE_PATH": str(packages / "node_modules"),
    }
    return Process(command, core=core, log=folder / "node-red.log", env=env)


def _flow(port: int) -> list[dict[str, object]]:
    broker: dict[str, object] = {
        "id": "broker",
        "type": "mqtt-broker",
        "broker": "127.0.0.1",
        "port": str(port),
        "clientid": "bench-node-red",
        "autoConnect": True,
        "usetls": False,
        "protocolVersion": "4",
        "keepalive": "60",
        "cleansession": True,
    }
    source: dict[str, object] = {
        "id": "in",
        "type": "mqtt in",
        "z": "tab",
        "topic": TOPIC_IN,
        "qos": "1",
        "datatype": "json",
        "broker": "broker",
        "wires": [["infer"]],
    }
    infer: dict[str, object] = {
        "id": "infer",
        "type": "function",
        "z": "tab",
        "func": (PEERS / "function.js").read_text(),
        "outputs": 1,
        "wires": [["out"]],
    }
    sink: dict[str, object] = {
        "id": "out",
        "type": "mqtt out",
        "z": "tab",
        "topic": TOPIC_OUT,
        "qos": "1",
        "broker": "broker",
        "wires": [],
    }
    return [{"id": "tab", "type": "tab", "label": "bench"}, broker, source, infer, sink]
