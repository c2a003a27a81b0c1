"""`edge-runtime serve`: bundles behind a server, without sensors, broker or event loop.

Guarantee: `reload` loads every bundle before it exchanges any; if one is refused, all continue unchanged. A request is
answered by the models at the time it was read. A reload closes no connection.
"""

import resource
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime import __version__
from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.model import Model, ModelError
from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import BundleError, CommandError
from edge_runtime.http.access_log import AccessLog
from edge_runtime.http.app import App
from edge_runtime.http.auth import Access, access_by, read_token
from edge_runtime.http.listening import address_of, is_local
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Numbers, Served
from edge_runtime.http.server import Server
from edge_runtime.http.shared_counts import SharedCounts
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.memory import resident_bytes

_log = get_logger("serve")


@dataclass(frozen=True, kw_only=True)
class StandOptions:
    """The options of `serve`, beside its bundles; their names are those of `[http]`."""

    token_file: Path | None = None
    health: str = "open"
    metrics: str = "token"
    hosts: Sequence[str] = ()
    origins: Sequence[str] = ()
    prefix: str = ""
    access_log: str = "off"


class Stand:
    """Bundles that are served.

    Args:
        bundles: their files, read again by `reload`.
        listener: a socket that listens.
        options: of access and server.
        shared: counts of the processes that serve on the same address.

    Raises:
        EdgeError: a bundle is refused, two have one name, or the socket is open to other machines without a token.
    """

    def __init__(
        self,
        bundles: Sequence[Path],
        listener: socket.socket,
        options: StandOptions,
        shared: SharedCounts | None = None,
    ) -> None:
        if not is_local(listener) and options.token_file is None:
            where = address_of(listener)
            raise CommandError(f"--listen: {where} is open to other machines: name a file with a token, --token-file")
        self._bundles = bundles
        self._options = options
        self._began = time.time()
        # For the ids of predictions: unique among all starts and all processes.
        self._start = int(self._began * 1000) * (1 if shared is None else shared.count)
        self._start += 0 if shared is None else shared.number
        self._numbers: Numbers = {}
        self._device = socket.gethostname() or "serve"
        self._models: dict[str, Served] = {}
        access = self._access()
        served = self._load()
        self._models = {each.name: each for each in served}
        log = AccessLog() if options.access_log == "json" else None
        self._app = App(served, Board(health=self._health), access=access, prefix=options.prefix, access_log=log)
        if shared is not None:
            self._app.counts.share(shared)
        self._server = Server(self._app, address_of(listener), listener=listener)
        self._server.start()

    @property
    def names(self) -> list[str]:
        """The names of the served models."""
        return list(self._models)

    def reload(self) -> str:
        """Read the bundles and the token again, and use them. Return the changes in words.

        Raises:
            EdgeError: one is refused; nothing has changed.
        """
        access = self._access()
        loaded = {served.name: served for served in self._load()}
        old, self._models = self._models, loaded
        self._app.models = loaded
        self._app.let_in(access)
        before = {name: served.model.bundle.digest for name, served in old.items()}
        after = {name: served.model.bundle.digest for name, served in loaded.items()}
        changed = [f"{name} {loaded[name].manifest.version}" for name in after if before.get(name) != after[name]] + [
            f"{name} is gone" for name in before if name not in after
        ]
        return ", ".join(changed) or "nothing changed"

    def stop(self, within: float, *, accepts: bool = True) -> None:
        """Answer requests in flight for at most so many seconds, and end.

        Args:
            within: the seconds.
            accepts: take new connections for a while; else they are left to other holders of the socket.
        """
        self._server.drain(within, accepts=accepts)
        if not self._server.join(within + 1.0):
            _log.warning("the model has not come back within the stop's time", extra=fields(seconds=within))
        self._server.stop()

    def _access(self) -> Access:
        options = self._options
        token = None if options.token_file is None else read_token(options.token_file)
        return access_by(
            token, health=options.health, metrics=options.metrics, hosts=options.hosts, origins=options.origins
        )

    def _load(self) -> list[Served]:
        served: dict[str, Served] = {}
        for path in self._bundles:
            each = _serve(path, self._device, self._start, self._numbers)
            if each.name in served:
                raise CommandError(f"{path}: a bundle of the name {each.name} is served already: serve one of them")
            served[each.name] = each
        return list(served.values())

    def _health(self) -> dict[str, Any]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": self._device,
            "runtime": __version__,
            "uptime_s": round(time.time() - self._began, 1),
            "models": {name: {"version": each.manifest.version} for name, each in self._models.items()},
            "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
            "rss_bytes": resident_bytes(),
        }


def _serve(path: Path, device: str, start: int, numbers: Numbers) -> Served:
    bundle = open_bundle(path)
    model = Model(bundle)
    try:
        check_golden(model)
    except (BundleError, ModelError) as error:
        raise BundleError(f"{path}: {error}") from error
    return Served(bundle.manifest.name, model, device=device, start=start, numbers=numbers)
