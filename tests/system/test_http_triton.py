"""A public client of the protocol, in an environment of its own, against the installed server."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import builders
from tests.support.installed import Installed, clean_environment
from tests.support.waiting import patient

pytestmark = pytest.mark.system

PYTHON = "EDGE_TRITON_PYTHON"


def test_tritonclient_gets_the_same_answer_in_every_form(installed: Installed, tmp_path: Path, free_port: int) -> None:
    """JSON and binary tensors, in and out, plain, gzip and deflate: one answer; and every other question works."""
    python = os.environ.get(PYTHON)
    if python is None:
        pytest.skip(f"set {PYTHON} to a Python in whose environment tritonclient[http] is installed")
    bundle = builders.classification().save(tmp_path / "activity.onnx")
    listen = f"127.0.0.1:{free_port}"
    server = subprocess.Popen(
        [str(installed.edge_runtime), "serve", str(bundle), "--listen", listen],
        cwd=tmp_path,
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        assert "serving activity on" in server.stderr.readline()
        script = Path(__file__).with_name("triton_client.py")
        command = [python, str(script), listen, "activity", "1.0.0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(120), check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("conforms: 72 forms")
        server.send_signal(signal.SIGTERM)
        assert server.wait(patient(10)) == 0
    finally:
        server.kill()
        server.wait(patient(10))
        server.stderr.close()
