"""The real nginx and Caddy, with the recipes of `examples/proxy`, as processes that a test ends by their pid."""

import contextlib
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.waiting import patient, wait_until

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "proxy"


def require(tool: str) -> str:
    """Where a tool is; the test is skipped where it is not."""
    found = shutil.which(tool, path="/usr/sbin:/usr/bin:/usr/local/bin:/sbin:/bin")
    if found is None:
        pytest.skip(f"{tool} is not installed: THE RECIPES OF examples/proxy ARE NOT TRIED (.ci/run installs it)")
    return found


def recipe(name: str, port: int, upstream: str) -> str:
    """A recipe with another port, and another address behind it."""
    text = (RECIPES / name).read_text()
    text = re.sub(r"(listen |^:)80\b", rf"\g<1>{port}", text, flags=re.MULTILINE)
    changed = text.replace("127.0.0.1:8080", upstream)
    assert changed != text
    return changed


@contextlib.contextmanager
def nginx(name: str, folder: Path, port: int, upstream: str) -> Iterator[None]:
    """`nginx` with a recipe between the lines that the distribution has around it, in one process."""
    tool = require("nginx")
    temporary = "".join(
        f"{each}_temp_path {folder}/{each};" for each in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "recipe.conf").write_text(recipe(name, port, upstream).replace("listen ", "listen 127.0.0.1:", 1))
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;"
        f"events {{ }} http {{ access_log {folder}/access.log; {temporary} include {folder}/recipe.conf; }}"
    )
    yield from _running([tool, "-p", str(folder), "-c", str(folder / "nginx.conf")], folder, port)


@contextlib.contextmanager
def caddy(folder: Path, port: int, upstream: str) -> Iterator[None]:
    """`caddy` with its recipe, without its administrator's port and without certificates."""
    tool = require("caddy")
    text = recipe("Caddyfile", port, upstream).replace(f":{port} {{", f":{port} {{\n\tbind 127.0.0.1", 1)
    (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
    command = [tool, "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]
    yield from _running(command, folder, port)


def _running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    with (folder / "proxy.log").open("wb") as log:
        proxy = subprocess.Popen(command, stdout=log, stderr=log, env={"HOME": str(folder), "PATH": "/usr/bin:/bin"})

    def listens() -> bool:
        assert proxy.poll() is None, (folder / "proxy.log").read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=patient(5)).close()
        except OSError:
            return False
        return True

    try:
        wait_until(listens, "the proxy", 30)
        yield
    finally:
        proxy.terminate()
        try:
            proxy.wait(patient(20))
        except subprocess.TimeoutExpired:
            proxy.kill()
            proxy.wait(patient(20))
