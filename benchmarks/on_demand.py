"""Predictions on demand: what 50 clients cost the stream, what a request costs beside Flask, what `[http]` costs idle.

The stream's latency is measured with and without clients in turns within one start of the daemon, so that a slow
stretch of the machine hits both. The daemon is not pinned: its two threads have all cores, as they would have on a
device. The clients, the broker and the load generator share the machine with it, which is harder than a device has it.
"""

import importlib.util
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.broker import free_port, start_broker
from benchmarks.load import Load, wait_online
from benchmarks.names import DAEMON, TOPIC_IN, TOPIC_OUT
from benchmarks.pipeline import START_SECONDS
from benchmarks.process import Process, cores
from benchmarks.results import Results
from benchmarks.targets import COMMAND, ENVIRONMENT, PEERS, daemon_config, start_daemon

CLIENTS = 50
RATE_HZ = 200.0
TURNS = 4  # with and without, one after the other
WARM_SECONDS = 1.5
POLL_SECONDS = 0.02
FLASK = "flask"
MLSERVER = "mlserver"
PREDICT, INFER = "/predict/mlp", "/v2/models/mlp/infer"
PEER_PACKAGES = {FLASK: "flask>=3,<4", MLSERVER: "mlserver>=1.7,<1.8"}
INSTALL_SECONDS = 300.0

P99_ALONE = "stream 200/s without clients, p99 µs"
P99_BESIDE = "stream 200/s with 50 HTTP clients, p99 µs"
P99_RATIO = "stream 200/s, p99 with clients over p99 without"
LOST = "stream 200/s with 50 HTTP clients, predictions missing"
REQUESTS = "HTTP requests per CPU s, 50 clients, connections kept"
P99_KEPT = "HTTP, 99th percentile of an answer, 50 clients, ms"
RSS_SERVING = "HTTP, MiB of memory of the whole server after these requests"
LINES = "HTTP, lines that a user writes"
RSS = "HTTP, MiB of memory over the daemon without it"
RSS_USED = "HTTP, MiB of memory over the daemon without it, after all these requests"


def measure(folder: Path, model: Path, seconds: float, results: Results) -> None:
    """All of it, once."""
    folder = Path(tempfile.mkdtemp(prefix="http-", dir=folder))
    with _all_cores():
        _beside_the_stream(folder, model, seconds, results)
        _alone(folder, model, seconds, results)


def _beside_the_stream(folder: Path, model: Path, seconds: float, results: Results) -> None:
    core = cores()[0]
    broker, port = start_broker(folder, core)
    with broker:
        config = daemon_config(folder, port, model)
        with start_daemon(folder, core, config) as plain:
            plain_rss = _settled_rss(plain, port)
        http = free_port()
        listening = f'{config}\n[http]\nlisten = "127.0.0.1:{http}"\n'
        with start_daemon(folder, core, listening) as running:
            _all_cores_of(running)
            results.add(RSS, DAEMON, (_settled_rss(running, port) - plain_rss) / 2**20)
            _turns(running, port, http, seconds, results=results)
            results.add(RSS_USED, DAEMON, (running.rss_bytes() - plain_rss) / 2**20)


def _turns(running: Process, port: int, http: int, seconds: float, *, results: Results) -> None:
    load = Load(port, [TOPIC_IN], TOPIC_OUT)
    load.first_answer(running)
    lost = 0
    alone, beside = [], []
    for _ in range(TURNS):
        load.paced(RATE_HZ, 1.0)
        found = load.paced(RATE_HZ, seconds / TURNS)
        alone.append(_p99_us(found.latencies_s))
        with _clients(http, CLIENTS, seconds / TURNS + 2 * WARM_SECONDS):
            load.paced(RATE_HZ, WARM_SECONDS)
            found = load.paced(RATE_HZ, seconds / TURNS)
        beside.append(_p99_us(found.latencies_s))
        lost += found.sent - found.answered
    load.close()
    running.check()
    for figure, value in (
        (P99_ALONE, statistics.median(alone)),
        (P99_BESIDE, statistics.median(beside)),
        (P99_RATIO, statistics.median(beside) / statistics.median(alone)),
        (LOST, float(lost)),
    ):
        results.add(figure, DAEMON, value)


def _alone(folder: Path, model: Path, seconds: float, results: Results) -> None:
    """Our server, Flask's and MLServer, one after the other, with the same clients and the same model.

    Flask is asked by name, as a tutorial has it, MLServer by the protocol of version 2, and we by both. Requests per
    second of the server's CPU, its memory and the clients' times are of the same run.
    """
    serve = [*COMMAND, "serve", str(model), "--listen", "127.0.0.1:{port}"]
    servers: list[tuple[str, str, list[str], int]] = [
        (DAEMON, PREDICT, serve, 1),
        (f"{DAEMON}, tensors", INFER, serve, 1),
    ]
    packages = {name: _installed(name) for name in PEER_PACKAGES}
    if packages[FLASK] is not None:
        script = PEERS / "flask_app.py"
        servers.append((FLASK, PREDICT, [sys.executable, str(script), "{port}", str(model)], _lines(script)))
    if packages[MLSERVER] is not None:
        start = [sys.executable, "-c", "from mlserver.cli import main; main()", "start", str(folder)]
        script = PEERS / "mlserver_model.py"
        lines = _lines(script) + _write_mlserver(folder, 0, model)
        servers.append((MLSERVER, INFER, start, lines))
    for name, path, command, lines in servers:
        port = free_port()
        words = [word.replace("{port}", str(port)) for word in command]
        if name == MLSERVER:
            _write_mlserver(folder, port, model)
        beside = packages.get(name)
        python_path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], *([str(beside)] if beside else []), str(PEERS)])
        log = folder / f"{name.replace(', ', '-')}.log"
        with Process(words, core=cores()[0], log=log, env={"PYTHONPATH": python_path}) as running:
            _wait_listening(running, port)
            _all_cores_of(running)
            with _clients(port, CLIENTS, WARM_SECONDS, path):
                pass
            before = running.usage()
            with _clients(port, CLIENTS, seconds / TURNS, path) as answered:
                pass
            used = running.usage() - before
            rss = running.rss_bytes()
        statuses = answered["statuses"]
        assert isinstance(statuses, dict)
        if set(statuses) != {"200"}:
            results.note(f"{name}: answers by status: {statuses}")
        results.add(REQUESTS, name, statuses.get("200", 0) / used.cpu_s)
        if isinstance(answered["p99_ms"], float):
            results.add(P99_KEPT, name, answered["p99_ms"])
        results.add(RSS_SERVING, name, rss / 2**20)
        results.add(LINES, name, float(lines))


def _write_mlserver(folder: Path, port: int, model: Path) -> int:
    """What a user of MLServer writes beside a runtime: two files of settings; their lines."""
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    settings |= {"parallel_workers": 0, "debug": False}
    of_model = {
        "name": "mlp",
        "implementation": "mlserver_model.OnnxModel",
        "parameters": {"uri": str(model.absolute())},
    }
    texts = {
        "settings.json": json.dumps(settings, indent=1),
        "model-settings.json": json.dumps(of_model, indent=1),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    return sum(text.count("\n") + 1 for text in texts.values())


def _lines(script: Path) -> int:
    """Lines of code: neither empty nor comment nor docstring of one line."""
    text = script.read_text().split('"""', 2)[2]
    return sum(bool(line.strip()) and not line.strip().startswith(("#", '"""')) for line in text.splitlines())


@contextmanager
def _clients(port: int, count: int, seconds: float, path: str = PREDICT) -> Iterator[dict[str, object]]:
    """Clients at work; what they counted is there when the block has been left."""
    answered: dict[str, object] = {}
    words = [sys.executable, str(PEERS / "clients.py"), str(port), path, str(count), str(seconds), "keep"]
    clients = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    try:
        yield answered
        predicted, _ = clients.communicate(timeout=seconds + START_SECONDS)
        if clients.returncode:
            raise RuntimeError(f"the clients ended with {clients.returncode}")
        answered.update(json.loads(predicted))
    finally:
        clients.kill()
        clients.wait()


def _settled_rss(running: Process, port: int) -> int:
    wait_online(port, "bench", START_SECONDS)
    load = Load(port, [TOPIC_IN], TOPIC_OUT)
    load.first_answer(running)
    load.paced(RATE_HZ, 1.0)
    load.close()
    return running.rss_bytes()


def _wait_listening(running: Process, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        running.check()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return


def _installed(name: str) -> Path | None:
    """A folder with a peer's packages, filled on the first call; None, with a printed reason, on failure."""
    folder = Path(tempfile.gettempdir()) / f"edge-benchmark-{name}-{os.getuid()}"
    if importlib.util.find_spec(name) is not None or (folder / name).exists():
        return folder
    print(f"installing {name} with pip, once ...", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), PEER_PACKAGES[name]]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"SKIPPED {name}: pip install failed: {error}\n{str(error.stderr)[-1000:]}")
        return None
    return folder


@contextmanager
def _all_cores() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _all_cores_of(running: Process) -> None:
    """Of every thread that it has by now; those to come inherit it."""
    for task in Path(f"/proc/{running.pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), range(os.cpu_count() or 1))


def _p99_us(latencies_s: list[float]) -> float:
    return sorted(latencies_s)[int(len(latencies_s) * 0.99)] * 1e6
