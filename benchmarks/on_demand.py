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
INSTALL_SECONDS = 300.0

P99_ALONE = "stream 200/s without clients, p99 µs"
P99_BESIDE = "stream 200/s with 50 HTTP clients, p99 µs"
P99_RATIO = "stream 200/s, p99 with clients over p99 without"
LOST = "stream 200/s with 50 HTTP clients, predictions missing"
REQUESTS = "HTTP requests per CPU s, 50 clients, connections kept"
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
            _turns(running, port, http, seconds, results)
            results.add(RSS_USED, DAEMON, (running.rss_bytes() - plain_rss) / 2**20)


def _turns(running: Process, port: int, http: int, seconds: float, results: Results) -> None:
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
    """Our server and Flask's, one after the other, with the same clients: requests per second of the server's CPU."""
    servers = {"serve": [*COMMAND, "serve", str(model), "--listen", "127.0.0.1:{port}"]}
    packages = _flask()
    if packages is not None:
        servers[FLASK] = [sys.executable, str(PEERS / "flask_app.py"), "{port}", str(model)]
    for name, command in servers.items():
        port = free_port()
        words = [word.replace("{port}", str(port)) for word in command]
        path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], *([str(packages)] if packages else [])])
        with Process(words, core=cores()[0], log=folder / f"{name}.log", env={"PYTHONPATH": path}) as running:
            _all_cores_of(running)
            _wait_listening(running, port)
            with _clients(port, CLIENTS, WARM_SECONDS):
                pass
            before = running.usage()
            with _clients(port, CLIENTS, seconds / TURNS) as answered:
                pass
            used = running.usage() - before
        statuses = answered["statuses"]
        assert isinstance(statuses, dict)
        if set(statuses) != {"200"}:
            results.note(f"{name}: answers by status: {statuses}")
        results.add(REQUESTS, DAEMON if name == "serve" else name, statuses.get("200", 0) / used.cpu_s)


@contextmanager
def _clients(port: int, count: int, seconds: float) -> Iterator[dict[str, object]]:
    """Clients at work; what they counted is there when the block has been left."""
    answered: dict[str, object] = {}
    words = [sys.executable, str(PEERS / "clients.py"), str(port), "/predict/mlp", str(count), str(seconds), "keep"]
    clients = subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, **ENVIRONMENT})
    try:
        yield answered
        said, _ = clients.communicate(timeout=seconds + START_SECONDS)
        if clients.returncode:
            raise RuntimeError(f"the clients ended with {clients.returncode}")
        answered.update(json.loads(said))
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


def _flask() -> Path | None:
    """A folder with Flask, filled on the first call; None, said aloud, where that cannot be done."""
    folder = Path(tempfile.gettempdir()) / f"edge-benchmark-flask-{os.getuid()}"
    if importlib.util.find_spec("flask") is not None or (folder / "flask").exists():
        return folder
    print("installing Flask with pip, once ...", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "flask>=3,<4"]
    try:
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, capture_output=True, text=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        print(f"SKIPPED flask: pip install failed: {error}\n{str(error.stderr)[-1000:]}")
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
