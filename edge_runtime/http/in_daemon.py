"""`[http]` beside a running daemon: the server over the models that the stream uses.

Guarantee: the stream never waits for a request, except for the end of its current step (`yield_to_loop.py`). The
server's thread uses the models and the board, and nothing else of the loop. An address that is in use is tried again.
If a reload changes the table, the successor takes over the socket, and the predecessor answers its requests in flight.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_runtime.bundle.model import Model
from edge_runtime.config.tables import HttpTable, ModelTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.payloads import FlatPayload, Payload
from edge_runtime.http.access_log import AccessLog
from edge_runtime.http.app import App
from edge_runtime.http.auth import access_by, read_token
from edge_runtime.http.live_view import Board, TappedPayload, WatchedAnswers
from edge_runtime.http.page_facts import names_of
from edge_runtime.http.served_model import Numbers, Served
from edge_runtime.http.server import ListenError, Server
from edge_runtime.http.truth_api import TakeTruth
from edge_runtime.http.yield_to_loop import install_gate
from edge_runtime.readings import Batch
from edge_runtime.system.counters import Counters
from edge_runtime.system.log import fields, get_logger
from edge_runtime.system.loop import Loop, Timer

RETRY_S = 5.0
SOON_S, SOON_RETRY_S = 1.0, 0.05  # while a predecessor releases its address

_log = get_logger("http")


class Attached:
    """The HTTP side of a daemon; every method must be called in the loop's thread.

    Args:
        config: its table.
        device: the device's id.
        start: the number of this start.
        loop: the event loop.
        health: makes the health document, in the loop's thread.
        counters: `http_failed`.
        on_change: called when it begins to listen, and when it fails.
        truth: joins a truth, in any thread.
        listener: the socket that the predecessor's `leave` returned; None opens a new one.
        follows: whether a predecessor may still be releasing its address.
    """

    def __init__(
        self,
        config: HttpTable,
        *,
        device: str,
        start: int,
        loop: Loop,
        health: Callable[[], dict[str, Any]],
        counters: Counters,
        on_change: Callable[[], None],
        truth: TakeTruth | None = None,
        listener: socket.socket | None = None,
        follows: bool = False,
    ) -> None:
        self._truth = truth
        self._config = config
        self._device = device
        self._start = start
        self._loop = loop
        self._gate = install_gate(loop)
        self._counters = counters
        self._on_change = on_change
        self._board = Board(loop.call_soon_threadsafe, health)
        token = None if config.token_file is None else read_token(Path(config.token_file))
        self._access = access_by(
            token, health=config.health, metrics=config.metrics, hosts=config.hosts, origins=config.origins
        )
        self._numbers: Numbers = {}
        self._app: App | None = None
        self._server: Server | None = None
        self._retry: Timer | None = None
        self._listener = listener
        self._soon_until = loop.time() + SOON_S if follows else 0.0

    @property
    def is_listening(self) -> bool:
        """Whether requests are answered."""
        return self._server is not None and self._server.is_listening

    def tap(self, payload: Payload, **arguments: Any) -> Payload:
        """The payload, which the status page also receives as JSON; `arguments` are those of `JsonPayload`."""
        shown = None if type(payload) is JsonPayload else JsonPayload(**arguments)
        names = names_of(arguments["manifest"])
        return TappedPayload(self._board, payload, model=arguments["model"], names=names, shown=shown)

    def watch_answers(self, **arguments: Any) -> FlatPayload:
        """For a model without a payload of one message; `arguments` are those of `JsonPayload`."""
        names = names_of(arguments["manifest"])
        tapped = TappedPayload(self._board, JsonPayload(**arguments), model=arguments["model"], names=names)
        return WatchedAnswers(tapped)

    def note_readings(self, batch: Batch, channels: tuple[str, ...]) -> None:
        """Pass received readings to the status page."""
        self._board.note_readings(batch, channels)

    def begin(self, models: list[tuple[ModelTable, Model]]) -> None:
        """Listen, now or as soon as the address is free; if it listens already, serve exactly these models."""
        self._board.history.keep({config.name for config, _ in models})
        if self._app is not None:
            served = [self._served(*each) for each in models]
            self._app.models = {each.name: each for each in served}
            return
        served = [self._served(*each) for each in models]
        log = AccessLog() if self._config.access_log == "json" else None
        self._app = App(served, self._board, access=self._access, prefix=self._config.prefix, access_log=log)
        self._app.truth = self._truth
        listener = self._listener
        self._server = Server(
            self._app, self._config.listen, self._gate, self._failed, listener=listener, inherits=listener is not None
        )
        self._listen()

    def exchange(self, config: ModelTable, model: Model) -> None:
        """Use another bundle from now on; requests in progress are finished by the old one."""
        if self._app is not None:
            served = self._served(config, model)
            self._app.models = {**self._app.models, served.name: served}

    def drain(self, within: float, *, accepts: bool = True) -> None:
        """Report not ready, and answer requests in flight for so many seconds; `end` has to follow.

        Args:
            within: seconds; requests not answered by then are refused.
            accepts: take new connections for a while; else the address is free at once, for a successor.
        """
        if self._retry is not None:
            self._retry.cancel()
        if self._server is not None:
            self._server.drain(within, accepts=accepts)

    def leave(self, within: float) -> socket.socket | None:
        """Drain for a successor; return the socket for it, so that no client is refused in between."""
        kept = None if self._server is None else self._server.hand_over()
        self.drain(within, accepts=False)
        return kept

    @property
    def is_drained(self) -> bool:
        """Whether every request is answered, and no connection is open."""
        return self._server is None or self._server.is_over

    def end(self) -> None:
        """Stop listening, and answer nothing more."""
        if self._retry is not None:
            self._retry.cancel()
        if self._server is not None:
            self._server.stop()

    def _served(self, config: ModelTable, model: Model) -> Served:
        return Served(config.name, model, device=self._device, start=self._start, config=config, numbers=self._numbers)

    def _failed(self) -> None:
        """In the server's thread, after a failure: the server restarts by itself, and health reports it."""

        def count() -> None:
            self._counters.errors["http_failed"] += 1
            self._on_change()

        self._loop.call_soon_threadsafe(count)

    def _listen(self) -> None:
        assert self._server is not None
        try:
            self._server.start()
        except ListenError as error:
            if self._loop.time() < self._soon_until:
                self._retry = self._loop.call_later(SOON_RETRY_S, self._listen)
                return
            _log.warning(str(error), extra=fields(again_in_s=RETRY_S))
            self._retry = self._loop.call_later(RETRY_S, self._listen)
        else:
            _log.info("listening", extra=fields(listen=self._config.listen))
            self._on_change()
