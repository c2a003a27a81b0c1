"""`predict --engine dask`, in an environment of its own: the same file as without, also when a worker is killed."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import builders
from tests.support.installed import ROOT
from tests.support.waiting import Deadline, patient, wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

PYTHON = "EDGE_DASK_PYTHON"


@pytest.fixture
def python() -> str:
    """The interpreter of an environment with the extra `batch-dask`."""
    found = os.environ.get(PYTHON)
    if found is None:
        pytest.skip(f"set {PYTHON} to a Python in whose environment the extra batch-dask is installed")
    return found


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """A bundle and a folder of recordings."""
    builders.classification(length=10, stride=1).save(tmp_path / "motion.onnx")
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(8):
        rows = "".join(f"{a},{b}\n" for a, b in rng.normal(size=(8_000, 2)).astype(np.float32))
        (folder / f"{number:02}.csv").write_text("temperature,humidity\n" + rows + "bad,1\n")
    return tmp_path


def predict(python: str, folder: Path, output: str, *more: str) -> subprocess.Popen[str]:
    """Start the command on the source folder."""
    return subprocess.Popen(
        [python, "-m", "edge_runtime.cli", "predict", "motion.onnx", "recordings", "-o", output, *more],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for the end; what it has written to stderr."""
    _, error = process.communicate(timeout=patient(120))
    assert process.returncode == code, error
    assert "Traceback" not in error
    return error


@pytest.fixture
def cluster(python: str, tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler and two workers; gives the address and the workers."""
    log = tmp_path / "scheduler.log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    with log.open("wb") as file:
        scheduler = subprocess.Popen(
            [python, "-m", "distributed.cli.dask_scheduler", *options], stderr=file, stdout=file, env=environment
        )
    workers: list[subprocess.Popen[bytes]] = []
    try:
        wait_until(lambda: re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text()), log.read_text, 30)
        found = re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())
        assert found is not None
        for _ in range(2):
            command = [python, "-m", "distributed.cli.dask_worker", found[0], "--nthreads", "1", "--no-nanny"]
            command += ["--no-dashboard", "--local-directory", str(tmp_path)]
            workers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment))
        yield found[0], workers
    finally:
        for process in [*workers, scheduler]:
            process.kill()
            process.wait(patient(10))


def test_a_cluster_gives_the_same_file(
    python: str, recordings: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    """On a cluster, with a worker killed in the middle, every byte of output and side file is as on one machine."""
    finish(predict(python, recordings, "local.csv"))
    process = predict(python, recordings, "cluster.csv", "--engine", "dask", "--scheduler", cluster[0])
    parts = recordings / "cluster.csv.parts"
    wait_until(lambda: list(parts.glob("0*.json")) or process.poll() is not None, "the first part", 60)
    cluster[1][0].send_signal(signal.SIGKILL)
    assert "8 files" in finish(process)
    assert (recordings / "cluster.csv").read_bytes() == (recordings / "local.csv").read_bytes()
    rejected = (recordings / "cluster.csv.rejected.csv").read_text()
    assert rejected.count("wrong_type") == 8


def test_workers_read_and_the_command_writes_by_url(
    python: str, recordings: Path, cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    """Recordings and output behind URLs give the same file as files of this machine."""
    (recordings / "recordings/00.csv").rename(recordings / "one.csv")
    finish(predict(python, recordings, "local.parquet"))
    url = f"local://{recordings}"
    command = [
        python,
        "-m",
        "edge_runtime.cli",
        "predict",
        "motion.onnx",
        f"{url}/recordings",
        "-o",
        f"{url}/c.parquet",
    ]
    command += ["--engine", "dask", "--scheduler", cluster[0]]
    done = subprocess.run(
        command, cwd=recordings, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (recordings / "c.parquet").read_bytes() == (recordings / "local.parquet").read_bytes()


def test_a_scheduler_that_is_not_there_is_one_line(python: str, recordings: Path) -> None:
    """An address without an answer is exit 1 and one line."""
    limit = Deadline(60.0)
    error = finish(
        predict(python, recordings, "out.csv", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9"), code=1
    )
    assert "tcp://127.0.0.1:9: expected a Dask scheduler, found none" in error
    assert error.count("\n") == 1
    assert not limit.over
    assert not (recordings / "out.csv").exists()


def dask_program(python: str, program: str, *more: str, log: Path, path: str) -> subprocess.Popen[bytes]:
    """A scheduler or worker, with `path` as the only packages beside those of its environment."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [python, "-m", f"distributed.cli.{program}", *more, "--no-dashboard"],
            stdout=file,
            stderr=file,
            env=os.environ | {"PYTHONPATH": path},
            cwd=log.parent,
        )


@pytest.fixture
def scheduler(python: str, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A scheduler without workers; its address and its process."""
    log = tmp_path / "alone.log"
    process = dask_program(python, "dask_scheduler", "--host", "127.0.0.1", "--port", "0", log=log, path=str(ROOT))
    try:
        wait_until(lambda: re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text()), log.read_text, 30)
        found = re.search(r"tcp://127\.0\.0\.1:\d+", log.read_text())
        assert found is not None
        yield found[0], process
    finally:
        process.kill()
        process.wait(patient(10))


@pytest.mark.parametrize("fault", ["package", "version", "memory"])
def test_workers_that_could_not_do_it_are_named_first(
    python: str, recordings: Path, scheduler: tuple[str, subprocess.Popen[bytes]], fault: str
) -> None:
    """A worker without the package, of another release, with too little memory: one line, at once."""
    address, _ = scheduler
    path, words, options = str(ROOT), "", ["--memory-limit", "2GiB"]
    if fault == "package":
        path, words = str(recordings / "none"), "expected edge-inference-runtime in its environment, found none"
    elif fault == "version":
        package = recordings / "other" / "edge_runtime"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text('__version__ = "0.0.1"\n')
        path, words = str(package.parent), "as here, found 0.0.1: install the same release there"
    elif fault == "memory":
        options, words = ["--memory-limit", "100MiB"], "expected a memory limit of"
    command = [address, "--nthreads", "1", "--no-nanny", "--local-directory", str(recordings / "w"), *options]
    worker = dask_program(python, "dask_worker", *command, log=recordings / "worker.log", path=path)
    try:
        error = finish(predict(python, recordings, "out.csv", "--engine", "dask", "--scheduler", address), code=1)
    finally:
        worker.kill()
        worker.wait(patient(10))
    assert words in error
    assert error.count("\n") == 1
    assert not (recordings / "out.csv").exists()


def test_a_cluster_without_workers_is_one_line(
    python: str, recordings: Path, scheduler: tuple[str, subprocess.Popen[bytes]]
) -> None:
    """Nothing is waited for that is not there."""
    error = finish(predict(python, recordings, "out.csv", "--engine", "dask", "--scheduler", scheduler[0]), code=1)
    assert "expected workers, found none: start some, and run again" in error
    assert error.count("\n") == 1


def test_a_scheduler_that_is_lost_ends_the_run_in_one_line(
    python: str, recordings: Path, scheduler: tuple[str, subprocess.Popen[bytes]]
) -> None:
    """A scheduler that is killed in the middle: exit 1, one sentence, and the finished parts are kept."""
    address, process = scheduler
    command = [address, "--nthreads", "1", "--no-nanny", "--local-directory", str(recordings / "w")]
    worker = dask_program(python, "dask_worker", *command, log=recordings / "worker.log", path=str(ROOT))
    try:
        run = predict(python, recordings, "out.csv", "--engine", "dask", "--scheduler", address)
        parts = recordings / "out.csv.parts"
        wait_until(lambda: list(parts.glob("0*.json")) or run.poll() is not None, "the first part", 60)
        process.kill()
        error = finish(run, code=1)
    finally:
        worker.kill()
        worker.wait(patient(10))
    assert re.search(r"scheduler was lost|the parts that are complete are kept", error), error
    assert error.count("\n") == 1
    assert not (recordings / "out.csv").exists()
    assert list(parts.glob("0*.json"))
