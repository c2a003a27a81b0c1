"""`edge-runtime serve`: bundles behind a server, without sensors, broker or event loop."""

import resource
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_runtime import __version__
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model, ModelError
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.addresses import is_loopback
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.http.app import App
from edge_runtime.http.auth import read_token
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import ListenError, Server


def open_stand(bundles: Sequence[Path], listen: str, token_file: Path | None) -> tuple[Server, list[str]]:
    """Load the bundles and listen.

    Raises:
        EdgeError: a bundle is refused, two have one name, or the address cannot be listened on.
    """
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise CommandError(f"--listen: expected HOST:PORT, such as 127.0.0.1:8080, found {listen!r}")
    if not is_loopback(host) and token_file is None:
        raise CommandError(f"--listen: {listen} is open to other machines: name a file with a token, --token-file")
    token = None if token_file is None else read_token(token_file)
    began = time.time()
    device = socket.gethostname() or "serve"
    served: dict[str, Served] = {}
    for path in bundles:
        each = _serve(path, device, int(began))
        if each.name in served:
            raise CommandError(f"{path}: a bundle of the name {each.name} is served already: serve one of them")
        served[each.name] = each
    app = App(list(served.values()), Board(health=lambda: _health(device, began, served)), token=token)
    server = Server(app, listen)
    try:
        server.start()
    except ListenError as error:
        raise CommandError(str(error)) from error
    return server, list(served)


def _serve(path: Path, device: str, start: int) -> Served:
    bundle = open_bundle(path)
    model = Model(bundle)
    try:
        check_golden(model)
    except (BundleError, ModelError) as error:
        raise BundleError(f"{path}: {error}") from error
    return Served(bundle.manifest.name, model, device=device, start=start)


def _health(device: str, began: float, served: dict[str, Served]) -> dict[str, Any]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "device": device,
        "runtime": __version__,
        "uptime_s": round(time.time() - began, 1),
        "models": {name: {"version": each.manifest.version} for name, each in served.items()},
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
    }
