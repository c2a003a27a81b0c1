"""What the runtime is asked to reach, as bounds on the figures; the table ends with them."""

from benchmarks import (
    alone,
    beside_dask,
    beside_polars,
    gateway,
    growth,
    imports,
    instructions,
    on_demand,
    outage,
    paced_instructions,
    recordings,
    serial_port,
    sessions,
    turns,
)
from benchmarks import pipeline as p
from benchmarks.names import DAEMON
from benchmarks.results import Goal

# Instructions a reading on Python 3.11, and a tenth: what makes a path longer than that was not meant to.
INSTRUCTIONS = {("decode", 1): 30_500, ("decode", 32): 15_300, ("encode", 1): 58_000, ("encode", 32): 56_300}

GOALS = [
    Goal("paced CPU, beside the tutorial script", p.PACED, DAEMON, 0.65, "tutorial"),
    Goal("paced CPU, beside Node-RED", p.PACED, DAEMON, 0.35, "node-red"),
    Goal("the same of wire and JSON without any model", p.PACED, "wire", 0.35, "node-red", judged=False),
    Goal("paced CPU, beside the bare floor", p.PACED, DAEMON, 1.4, "floor"),
    Goal("predictions per CPU s, beside the tutorial script", p.PER_CPU_SECOND, DAEMON, 1.6, "tutorial", at_least=True),
    Goal("predictions per CPU s, beside Node-RED", p.PER_CPU_SECOND, DAEMON, 1.5, "node-red", at_least=True),
    Goal("saturated CPU, beside the bare floor (stretch)", p.SATURATED, DAEMON, 2.0, "floor"),
    Goal("median latency over the echo, µs", p.P50, DAEMON, 150.0, "echo", kind="difference"),
    Goal("the same of the bare floor, µs", p.P50, "floor", 150.0, "echo", kind="difference", judged=False),
    Goal("paced CPU in turns, beside the tutorial script", turns.CPU, DAEMON, 0.65, "tutorial"),
    Goal("paced CPU in turns, beside Node-RED", turns.CPU, DAEMON, 0.35, "node-red"),
    Goal("the same of wire and JSON without any model", turns.CPU, "wire", 0.35, "node-red", judged=False),
    Goal("paced CPU in turns, beside the bare floor", turns.CPU, DAEMON, 1.4, "floor"),
    Goal(
        "instructions a paced reading, beside the tutorial script", paced_instructions.FIGURE, DAEMON, 0.65, "tutorial"
    ),
    Goal("instructions a paced reading, beside the bare floor", paced_instructions.FIGURE, DAEMON, 1.4, "floor"),
    Goal("median latency in turns over the echo, µs", turns.P50, DAEMON, 150.0, "echo", kind="difference"),
    Goal("the same of the bare floor, µs", turns.P50, "floor", 150.0, "echo", kind="difference", judged=False),
    Goal("99th percentile over the echo, µs", p.P99, DAEMON, 1000.0, "echo", kind="difference"),
    Goal("memory over the bare process, MiB", p.RSS, DAEMON, 8.0, alone.BARE, kind="difference"),
    Goal("memory, beside Node-RED", p.RSS, DAEMON, 0.45, "node-red"),
    Goal("start to first prediction, beside the bare process", p.FIRST, DAEMON, 1.3, alone.BARE),
    Goal("start to first prediction, beside Node-RED", p.FIRST, DAEMON, 0.4, "node-red"),
    Goal("idle CPU, % of a core", p.IDLE, DAEMON, 0.2),
    Goal("idle wake-ups a second", p.IDLE_WAKEUPS, DAEMON, 1.2),
    Goal("bytes written per prediction, healthy link", p.WRITTEN, DAEMON, 0.0),
    Goal("bytes written per prediction in an outage, in payloads", outage.PAYLOADS, DAEMON, 3.0),
    Goal("serial 1 kHz, CPU % of a core", serial_port.CPU, DAEMON, 5.0),
    Goal("serial 1 kHz, byte to prediction p99, µs", serial_port.P99, DAEMON, 3000.0),
    Goal("gateway, predictions missing", gateway.LOST, DAEMON, 0.0),
    Goal("stream's p99 with 50 HTTP clients, beside without", on_demand.P99_RATIO, DAEMON, 2.0),
    Goal("stream with 50 HTTP clients, predictions missing", on_demand.LOST, DAEMON, 0.0),
    Goal("requests per CPU s, beside Flask", on_demand.REQUESTS, DAEMON, 3.0, on_demand.FLASK, at_least=True),
    Goal("batch, readings per s, beside a bare loop", recordings.RATE, DAEMON, 0.8, recordings.LOOP, at_least=True),
    Goal("batch, peak memory MiB", recordings.PEAK, DAEMON, 400.0),
    *(
        Goal(f"batch, {shape}, CPU beside polars", beside_polars.CPU.format(shape), DAEMON, most, beside_polars.POLARS)
        for shape, most in beside_polars.GOALS.items()
    ),
    *(
        Goal(f"batch on Dask, readings per CPU s, beside {who}", beside_dask.RATE, DAEMON, 0.9, who, at_least=True)
        for who in (beside_dask.BY_HAND, beside_dask.LOCAL)
    ),
    Goal(
        "loading 41 MiB of convolutions from the copy, beside the bundle",
        sessions.LOAD.format("convolutions"),
        sessions.COPY,
        0.75,
        sessions.BUNDLE,
    ),
    Goal(
        "loading 3,000 small nodes from the copy, beside the bundle",
        sessions.LOAD.format("small nodes"),
        sessions.COPY,
        0.75,
        sessions.BUNDLE,
    ),
    Goal(
        "batch, peak memory, a recording 4 times as long",
        recordings.LENGTH_PEAK,
        recordings.LONG,
        1.1,
        recordings.SHORT,
    ),
    *(
        Goal(
            f"batch, {what}, readings per s, default beside {way}",
            recordings.ALL_RATE.format(what),
            recordings.DEFAULT,
            0.9,
            way,
            at_least=True,
        )
        for what in (recordings.SMALL, recordings.HEAVY, recordings.HEAVY_ALONE)
        for way in (recordings.ONE_CORE, recordings.PROCESSES, recordings.THREADS, recordings.INTRA_OP)
    ),
    Goal("memory of [http], MiB", on_demand.RSS_USED, DAEMON, 10.0),
    *(
        Goal(f"CPU per reading, {size} beside one of all", growth.GROWTH, str(size), 1.1, str(growth.ONE))
        for size in (
            growth.BY_KEYS[-1],
            growth.Size(models=50, sources=50),
            growth.ON_THEIR_OWN[-1],
            growth.BY_TOPICS[-1],
        )
    ),
    Goal(
        "CPU per prediction, 100 models on one source beside 1",
        growth.PER_PREDICTION,
        str(growth.ON_ONE_SOURCE[-1]),
        1.1,
        str(growth.ONE),
    ),
    Goal("imports of the runtime, beside numpy and onnxruntime", imports.SHARE, DAEMON, 0.4),
    *(
        Goal(
            f"instructions a reading, {path}, {batch} a wake-up", instructions.FIGURE.format(path, batch), DAEMON, most
        )
        for (path, batch), most in INSTRUCTIONS.items()
    ),
]
