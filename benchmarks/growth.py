"""How costs grow with keys, models, sources, topics, sizes of payloads and open pages: `python -m benchmarks.growth`.

`make bench BENCH="--figures growth"` is the first part alone, as a curve. `--only` takes some of the parts of `PARTS`:

- curves: CPU a reading from 1 to 10,000 keys, 100 models, 50 sources and 1,000 topics. All daemons are alive and take
  turns: measured one after the other, the drift of the machine shows as growth.
- documents: bytes of the health and models documents, and what an open page costs, with few and with many of all that.
- payloads: CPU a reading in messages of 100 bytes, 10 kB and 1 MB, and memory for 20 of them at once.
- once: keys that come once each, four times as many as may have windows; and keys that come and go.
- exchange: a reload that exchanges every one of 100 models.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import process
from benchmarks.broker import free_port
from benchmarks.gateway import TICK_SECONDS, start
from benchmarks.load import Load
from benchmarks.models import write_bundle
from benchmarks.process import Process
from benchmarks.results import Results

RATE_HZ = 200.0
MOST_A_READING = 10  # predictions at that rate
TURN_SECONDS = 2.0
WARM_HZ = 4000.0  # every key is known before the clock starts
GROWTH = "growth, µs CPU per reading"
PER_PREDICTION = "growth, µs CPU per prediction"
RETAINED_SECONDS = 20
LATE_SECONDS = 5.0  # without a prediction: then none is under way
PAGES = 4  # that may be open at once
MANY_CLIENTS = 50


class Size(NamedTuple):
    """How large a daemon is: keys of each source, models, sources that share the models out, topics of each source."""

    keys: int = 1
    models: int = 1
    sources: int = 1
    topics: int = 1

    def __str__(self) -> str:
        return f"{self.keys} keys, {self.models} models, {self.sources} sources, {self.topics} topics"

    @property
    def names(self) -> list[str]:
        """Every topic on which readings come."""
        return [
            f"sensors/line{topic}/{key:05d}/machine{source}"
            for key in range(self.keys)
            for topic in range(self.topics)
            for source in range(self.sources)
        ]

    @property
    def rate_hz(self) -> float:
        """Readings a second: fewer where each makes so many predictions that the broker would be what is measured."""
        return RATE_HZ * min(1.0, MOST_A_READING * self.sources / self.models)


ONE = Size()
BY_KEYS = [ONE, *(Size(keys=keys) for keys in (100, 1000, 10_000))]
ON_ONE_SOURCE = [ONE, *(Size(models=models) for models in (10, 100))]
ON_THEIR_OWN = [ONE, *(Size(models=models, sources=models) for models in (10, 50, 100))]
BY_TOPICS = [ONE, *(Size(topics=topics) for topics in (100, 1000))]
CURVES = {
    "growth with keys, window of one, paced 200/s": BY_KEYS,
    "growth with models on one source, paced 200/s, 20/s with 100 models": ON_ONE_SOURCE,
    "growth with models on sources of their own, paced 200/s in all": ON_THEIR_OWN,
    "growth with topics of one source, paced 200/s in all": BY_TOPICS,
}
LARGE = Size(keys=200, models=100, sources=50)  # 10,000 keys in all


@dataclass
class _Grown:
    """One size of the daemon, alive beside the others, and what each of its turns cost."""

    size: Size
    running: Process
    load: Load
    cpu_us: list[float] = field(default_factory=list)  # a reading
    predictions: float = 0.0  # a reading

    def turn(self) -> None:
        """One stretch of readings."""
        rate_hz = self.size.rate_hz
        self.load.stream(rate_hz, 0.3, 0.0)  # the one before has left its own code in the caches
        self.load.drain()
        before = self.running.usage()
        answers = self.load.stream(rate_hz, TURN_SECONDS, 0.0)
        used = self.running.usage() - before
        answers.answered += self.load.drain()
        if not answers.answered:
            raise RuntimeError(f"{self.size}: no prediction in {TURN_SECONDS:.0f} s")
        self.cpu_us.append(used.cpu_s / answers.sent * 1e6)
        self.predictions = answers.answered / answers.sent


def growth(folder: Path, seconds: float, results: Results) -> None:
    """CPU at a fixed rate of readings, over every size of `CURVES`, all alive and in turns.

    Models with sources of their own are met by readings in turn, so that each reading makes one prediction whatever
    their number: its cost has to be flat. Where models share a source a reading makes a prediction in each, and it is
    the cost of a prediction that counts.
    """
    folder = Path(tempfile.mkdtemp(prefix="growth-", dir=folder))
    sizes = dict.fromkeys(size for sizes in CURVES.values() for size in sizes)
    models = _bundles(folder, max(size.models for size in sizes))
    with ExitStack() as stack:
        grown = {size: _grow(Path(tempfile.mkdtemp(dir=folder)), size, models, stack) for size in sizes}
        for _ in range(max(5, round(seconds / TURN_SECONDS))):
            for each in grown.values():
                each.turn()
        rss = {size: each.running.rss_bytes() / 2**20 for size, each in grown.items()}
        for each in grown.values():
            each.load.close()
    for size, each in grown.items():
        for cpu_us in each.cpu_us:
            results.add(GROWTH, str(size), cpu_us)
            results.add(PER_PREDICTION, str(size), cpu_us / each.predictions)
    for name, along in CURVES.items():
        results.curves[name] = [{**_row(grown[size], grown[ONE]), "RSS MiB": rss[size]} for size in along]


def _grow(folder: Path, size: Size, bundles: list[Path], stack: ExitStack) -> _Grown:
    broker, running, load = start(folder, size.names, lambda port: config(folder, port, size, bundles))
    stack.enter_context(broker)
    stack.enter_context(running)
    load.first_answer(running)
    load.stream(min(WARM_HZ, WARM_HZ / size.models * size.sources), max(1.0, len(size.names) / WARM_HZ), TICK_SECONDS)
    load.drain()
    return _Grown(size, running, load)


def _row(each: _Grown, one: _Grown) -> dict[str, float]:
    ratio = statistics.median(mine / theirs for mine, theirs in zip(each.cpu_us, one.cpu_us, strict=True))
    return {
        "keys": float(each.size.keys),
        "models": float(each.size.models),
        "sources": float(each.size.sources),
        "topics": float(each.size.topics),
        "µs CPU per reading": statistics.median(each.cpu_us),
        "beside one of all": ratio,
        "predictions per reading": each.predictions,
        "µs CPU per prediction": statistics.median(each.cpu_us) / each.predictions,
        "beside 1": ratio / each.predictions,
    }


def _bundles(folder: Path, count: int) -> list[Path]:
    return [write_bundle(folder / f"mlp{number}.onnx", name=f"mlp{number}") for number in range(count)]


def config(
    folder: Path,
    port: int,
    size: Size,
    bundles: list[Path],
    *,
    more: str = "",
    source: str = "",
    model: str = "",
    health_interval: float = 2.0,
) -> str:
    """A device file; `more` is added at its end, `source` and `model` to each such table."""
    tables = []
    for number in range(size.sources):
        topics = ", ".join(f'"sensors/line{topic}/{{key}}/machine{number}"' for topic in range(size.topics))
        tables.append(f'[[source]]\nname = "machine{number}"\ntype = "mqtt"\ntopics = [{topics}]\n{source}')
    for number, bundle in enumerate(bundles[: size.models]):
        wanted = f'bundle = "{bundle}"\nsource = "machine{number % size.sources}"\n{model}'
        tables.append(f'[[model]]\nname = "{bundle.stem}"\n{wanted}')
    return f"""
[device]
id = "bench"
health_interval = {health_interval}

{chr(10).join(tables)}
[upstream]
url = "mqtt://127.0.0.1:{port}"

[outbox]
path = "{folder / "outbox.db"}"
{more}"""


# --- documents and pages ----------------------------------------------------------------------------------------------


def documents(folder: Path, seconds: float, results: Results) -> None:
    """What the device says of itself, and what it costs while pages are open: 50 clients ask, four are let in."""
    for size in (ONE, LARGE):
        own = Path(tempfile.mkdtemp(prefix="documents-", dir=folder))
        http = free_port()
        port = 0

        def made(found: int, own: Path = own, size: Size = size, http: int = http) -> str:
            nonlocal port
            port = found
            listening = f'[http]\nlisten = "127.0.0.1:{http}"\n'
            return config(own, found, size, _bundles(own, size.models), more=listening)

        broker, running, load = start(own, size.names, made)
        with broker, running:
            load.first_answer(running)
            load.stream(1000.0, len(size.names) / 1000.0 + 1.0, TICK_SECONDS)
            load.drain()
            time.sleep(3.0)
            row: dict[str, float] = {"keys": len(size.names), "models": size.models, "sources": size.sources}
            for what in ("health", "models"):
                row[f"{what}, bytes"] = float(len(_retained(port, f"edge/bench/{what}")))
            for clients in (0, 1, MANY_CLIENTS):
                with _pages(http, clients) as open_pages:
                    row[f"idle, {clients} pages, % of a core"] = _share(running, seconds)
                    before = running.usage()
                    answers = load.stream(RATE_HZ, seconds, 0.0)
                    used = running.usage() - before
                    row[f"{clients} pages, µs CPU per reading"] = used.cpu_s / answers.sent * 1e6
                    row["pages open at most"] = float(open_pages())
                load.drain()
            row["RSS MiB"] = running.rss_bytes() / 2**20
            load.close()
        for name, value in row.items():
            results.add(name, str(size), value)


def _share(running: Process, seconds: float) -> float:
    before = running.usage()
    time.sleep(seconds)
    used = running.usage() - before
    return 100.0 * used.cpu_s / used.wall_s


def _retained(port: int, topic: str) -> bytes:
    command = ["mosquitto_sub", "-p", str(port), "-t", topic, "-C", "1", "-W", str(RETAINED_SECONDS)]
    return subprocess.run(command, check=True, capture_output=True).stdout


@contextmanager
def _pages(port: int, count: int) -> Iterator[Callable[[], int]]:
    """So many clients that ask for the events, and read them; how many were let in."""
    words = [sys.executable, "-c", _READER, str(port), str(count)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        let_in = int(reader.stdout.readline())
        try:
            yield lambda: let_in
        finally:
            reader.kill()


_READER = """
import select, socket, sys
pages = []
for _ in range(int(sys.argv[2])):
    page = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    page.sendall(b"GET /events HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n")
    if b" 200 " in page.recv(4096).split(b"\\r\\n")[0]:
        pages.append(page)
print(len(pages), flush=True)
while True:
    for page in select.select(pages, [], [], 1.0)[0]:
        page.recv(1 << 20)
"""


# --- payloads ---------------------------------------------------------------------------------------------------------


def payloads(folder: Path, seconds: float, results: Results) -> None:
    """The same readings a second in messages of three sizes; then 20 such messages at once, for the memory."""
    for name, rows in (("100 B", 1), ("10 kB", 90), ("1 MB", 9100)):
        own = Path(tempfile.mkdtemp(prefix="payloads-", dir=folder))
        bundle = write_bundle(own / "mlp0.onnx", length=100, stride=100)

        def made(port: int, own: Path = own, bundle: Path = bundle) -> str:
            return config(own, port, ONE, [bundle], source="max_frame_bytes = 4000000\n")

        broker, running, load = start(own, ONE.names, made)
        with broker, running:
            load = load.of_arrays(rows, seed=5)
            load.stream(2000.0 / rows, 2.0, 0.0)
            load.drain()
            before = running.usage()
            answers = load.stream(2000.0 / rows, max(seconds, 5.0 * rows / 2000.0), 0.0)
            load.drain()
            used = running.usage() - before
            results.add("payloads, µs CPU per reading", name, used.cpu_s / answers.sent / rows * 1e6)
            results.add("payloads, RSS MiB", name, running.rss_bytes() / 2**20)
            load.stream(1e6, 20e-6, 0.0)
            load.drain()
            results.add("payloads, peak MiB after 20 at once", name, _peak_mib(running))
            load.close()


def _peak_mib(running: Process) -> float:
    lines = Path(f"/proc/{running.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


# --- keys that come and go --------------------------------------------------------------------------------------------


def once(folder: Path, _seconds: float, results: Results) -> None:
    """Keys that come once each: what the last ones cost beside the first, and how many made room; then their end."""
    keys, rate = 10_000, 1000.0
    own = Path(tempfile.mkdtemp(prefix="once-", dir=folder))
    size = Size(keys=4 * keys)
    port = 0

    def made(found: int) -> str:
        nonlocal port
        port = found
        return config(own, found, size, _bundles(own, 1), model="key_expiry = 5.0\n")

    broker, running, load = start(own, size.names, made)
    with broker, running:
        small = running.rss_bytes()
        for part in range(4):
            before = running.usage()
            load.stream(rate, keys / rate, TICK_SECONDS)
            load.drain()
            used = running.usage() - before
            name = f"keys {part * keys:,} to {(part + 1) * keys:,}"
            results.add("once, µs CPU per reading", name, used.cpu_s / keys * 1e6)
            results.add("once, RSS MiB", name, running.rss_bytes() / 2**20)
            results.add("once, KiB over the start a key", name, (running.rss_bytes() - small) / 1024 / keys)
        dropped = json.loads(_retained(port, "edge/bench/health"))["dropped"]
        results.note(f"once: dropped {dropped} of {4 * keys} keys, with room for {keys}")
        for turn in range(3):
            time.sleep(40.0)  # silent keys are looked for every 30 s
            model: dict[str, Any] = json.loads(_retained(port, "edge/bench/health"))["models"]["mlp0"]
            results.add("come and go, keys left", f"after {turn}", float(model["keys"]))
            results.add("come and go, RSS MiB", f"after {turn}", running.rss_bytes() / 2**20)
            load.stream(rate, keys / rate, TICK_SECONDS)
            load.drain()
        load.close()


# --- an exchange of every model ---------------------------------------------------------------------------------------


def exchange(folder: Path, _seconds: float, results: Results) -> None:
    """SIGHUP after every bundle was replaced: time, CPU, memory, and whether every reading was answered meanwhile."""
    own = Path(tempfile.mkdtemp(prefix="exchange-", dir=folder))
    size = Size(models=100, sources=50)
    bundles = _bundles(own, size.models)
    broker, running, load = start(own, size.names, lambda port: config(own, port, size, bundles))
    with broker, running:
        load.first_answer(running)
        load.stream(RATE_HZ, 2.0, 0.0)
        load.drain()
        results.add("exchange, RSS MiB", "before", running.rss_bytes() / 2**20)
        for turn in range(4):
            for bundle in bundles:
                write_bundle(bundle, name=bundle.stem, any_batch=turn % 2 == 0)
            before, began = running.usage(), time.monotonic()
            os.kill(running.pid, signal.SIGHUP)
            sent = answered = 0
            while running.output().count("reloaded: ") < (turn + 1) * size.models:
                found = load.stream(RATE_HZ, 0.5, 0.0)
                sent, answered = sent + found.sent, answered + found.answered
                if time.monotonic() - began > 120.0:
                    raise TimeoutError(f"no reload in 120 s:\n{running.output()[-2000:]}")
            took = time.monotonic() - began
            while found_late := load.answers(LATE_SECONDS):
                answered += found_late
            used = running.usage() - before
            name = f"reload {turn + 1}"
            results.add("exchange, s", name, took)
            results.add("exchange, CPU s with the readings", name, used.cpu_s)
            results.add("exchange, predictions missing", name, float(2 * sent - answered))
            results.add("exchange, RSS MiB", name, running.rss_bytes() / 2**20)
            results.add("exchange, peak MiB", name, _peak_mib(running))
        load.close()


PARTS: dict[str, Callable[[Path, float, Results], None]] = {
    "curves": growth,
    "documents": documents,
    "payloads": payloads,
    "once": once,
    "exchange": exchange,
}


def main() -> int:
    """Measure the parts that were asked for, and print them."""
    parser = argparse.ArgumentParser(prog="benchmarks.growth", description=__doc__)
    parser.add_argument("--only", default=",".join(PARTS), help=f"parts, of {','.join(PARTS)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a stretch (default 10)")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if set(wanted) - set(PARTS):
        parser.error(f"expected some of {','.join(PARTS)}, found {arguments.only}")
    if shutil.which("mosquitto_sub") is None:
        parser.error("expected the program mosquitto_sub, found none: apt install mosquitto-clients")
    os.sched_setaffinity(0, {process.cores()[0]})
    with tempfile.TemporaryDirectory(prefix="edge-growth-") as folder:
        for name in wanted:
            results = Results(machine={})
            PARTS[name](Path(folder), arguments.seconds, results)
            print(f"\n{name}\n{results.table([])}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
