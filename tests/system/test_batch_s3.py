"""`predict` and an S3 storage: recordings, output and bundle by URL, against moto's server on this machine."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.support import builders
from tests.support.waiting import patient

ROOT = Path(__file__).parents[2]
PYTHON = "EDGE_S3_PYTHON"
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""


@pytest.fixture
def python() -> str:
    """The interpreter of an environment with moto and s3fs."""
    found = os.environ.get(PYTHON)
    if found is None:
        pytest.skip(f"set {PYTHON} to a Python in whose environment moto and s3fs are installed: make clients")
    return found


@pytest.fixture
def environment(python: str) -> Iterator[dict[str, str]]:
    """An S3 server, and what a user sets to reach it."""
    process = subprocess.Popen(
        [python, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield os.environ | {
            "PYTHONPATH": str(ROOT),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.communicate("", timeout=patient(30))


def storage(python: str, environment: dict[str, str], program: str) -> str:
    """Something done with s3fs; what it prints."""
    done = subprocess.run(
        [python, "-c", f"import s3fs; s3 = s3fs.S3FileSystem()\n{program}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(120),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def predict(python: str, environment: dict[str, str], folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command."""
    return subprocess.run(
        [python, "-m", "edge_runtime.cli", "predict", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=patient(180),
    )


def test_everything_may_stand_in_s3(python: str, environment: dict[str, str], tmp_path: Path) -> None:
    """Folder, pattern, output, list and bundle by URL give the bytes of local files; a failed run keeps the output."""
    builders.classification().save(tmp_path / "comfort.onnx")
    (tmp_path / "in").mkdir()
    values = np.random.default_rng(1).normal(size=(2, 3_000)).astype(np.float32)
    columns = dict(zip(("temperature", "humidity"), values, strict=True))
    parquet.write_table(pa.table(columns), tmp_path / "in/a.parquet", row_group_size=500)
    text = "temperature,humidity\n" + "".join(f"{a},{b}\n" for a, b in values.T) + "x,1\n"
    (tmp_path / "in/b.csv").write_text(text)
    (tmp_path / "in/_SUCCESS").write_text("")
    (tmp_path / "bad.csv").write_text("temperature,humidity\nx,1\n")
    local = predict(python, environment, tmp_path, "comfort.onnx", "in", "-o", "local.csv")
    assert local.returncode == 0, local.stderr
    storage(
        python,
        environment,
        f"s3.mkdir('plant'); s3.put({str(tmp_path / 'in')!r}, 'plant/', recursive=True)\n"
        f"s3.put({str(tmp_path / 'comfort.onnx')!r}, 'plant/models/comfort.onnx')",
    )
    done = predict(
        python, environment, tmp_path, "s3://plant/models/comfort.onnx", "s3://plant/in", "-o", "s3://plant/out.csv"
    )
    assert done.returncode == 0, done.stderr
    assert "6000 predictions of 6001 readings in 2 files to s3://plant/out.csv" in done.stderr
    assert "1 files were not read: begins with . or _, such as s3://plant/in/_SUCCESS" in done.stderr
    assert (
        storage(python, environment, "print(s3.cat('plant/out.csv').decode(), end='')")
        == (tmp_path / "local.csv").read_text()
    )
    listed = storage(python, environment, "print(s3.cat('plant/out.csv.rejected.csv').decode())")
    assert re.search(r"s3://plant/in/b\.csv,3002,wrong_type", listed)
    failed = predict(python, environment, tmp_path, "comfort.onnx", "bad.csv", "-o", "s3://plant/out.csv")
    assert failed.returncode == 1
    assert "none of 1 readings could be used" in failed.stderr
    assert storage(python, environment, "print(len(s3.cat('plant/out.csv')))").strip() == str(
        (tmp_path / "local.csv").stat().st_size
    )
    missing = predict(python, environment, tmp_path, "comfort.onnx", "s3://plant/in", "-o", "s3://nowhere/out.csv")
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1
    assert "s3://nowhere/out.csv: cannot be written" in missing.stderr
