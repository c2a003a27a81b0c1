"""Figures without a broker: the bare process (memory, start) and onnxruntime in a loop (the model's own cost)."""

from pathlib import Path

from benchmarks import pipeline, process
from benchmarks.results import Results
from benchmarks.targets import script

START_SECONDS = 60.0
BARE, LOOP = "bare process", "onnxruntime"


def bare_process(folder: Path, model: Path, results: Results) -> None:
    """Start to first prediction and memory of a process with numpy, onnxruntime, paho and the session."""
    core = process.cores()[1]
    with script("bare_process", str(model), folder=folder, core=core) as running:
        results.add(pipeline.FIRST, BARE, running.wait_for("first\n", START_SECONDS))
        running.wait_for("settled\n", START_SECONDS)
        results.add(pipeline.RSS, BARE, running.rss_bytes() / 2**20)


def onnx_loop(folder: Path, model: Path, seconds: float, results: Results) -> None:
    """CPU of session.run alone, paced and at full speed."""
    core = process.cores()[1]
    for figure, rate_hz in ((pipeline.PACED, pipeline.RATE_HZ), (pipeline.SATURATED, 0.0)):
        with script("onnx_loop", str(model), str(rate_hz), str(seconds), folder=folder, core=core) as running:
            running.wait(seconds + START_SECONDS)
            count, cpu_s = running.output().split()[-2:]
        results.add(figure, LOOP, float(cpu_s) / int(count) * 10_000)
