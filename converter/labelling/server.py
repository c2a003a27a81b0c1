"""The server of the label page: on the loopback, for one person, for as long as the command runs.

Guarantee: a decision is on disk before the page gets its answer. A request is answered only with the random path of
this run, a loopback host and this page's origin, so that neither another user nor another site can read or write.
"""

import secrets
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any

import msgspec
import numpy as np

from converter.labelling.decisions import Decision, LabelFile
from converter.labelling.task import MOST_LABEL_CHARACTERS, MOST_LABELS, LabelTask, document
from edge_runtime.errors import CommandError

MOST_BODY_BYTES = 65_536
LARGEST = float(np.finfo(np.float32).max)
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """A request of the page: a label, numbers, `skipped`, or none of these to undo the last decision."""

    id: str
    label: str | None = None
    values: dict[str, float] = {}
    skipped: bool = False


class Labelling:
    """The state of one run: the items and the decisions. Any thread may call it.

    Args:
        task: the items to label.
        file: stores the decisions.
    """

    def __init__(self, task: LabelTask, file: LabelFile) -> None:
        self._task = task
        self._file = file
        self._lock = threading.Lock()
        self._places = {item.id: place for place, item in enumerate(task.items)}
        self._labels = list(task.labels)
        self._note_labels()

    def progress(self) -> dict[str, int]:
        """The numbers of items, of labelled and of skipped ones."""
        states = [self._state(place) for place in range(len(self._task.items))]
        labelled = sum(state["label"] is not None or bool(state["values"]) for state in states)
        return {"all": len(states), "labelled": labelled, "skipped": sum(state["skipped"] for state in states)}

    def _note_labels(self) -> None:
        """Offer labels that were added on a page, too."""
        for decision in self._file.latest.values():
            if decision.label is not None and decision.label not in self._labels:
                self._labels.append(decision.label)

    def overview(self) -> dict[str, Any]:
        """The overview, without the values; with the decisions that other processes have added.

        Raises:
            CommandError: they cannot be read.
        """
        with self._lock:
            self._file.refresh()
            self._note_labels()
            return {
                "kind": self._task.kind,
                "labels": self._labels,
                "channels": self._task.channels,
                "notes": self._task.notes,
                "items": [
                    {"id": item.id, "about": item.about, **self._state(place)}
                    for place, item in enumerate(self._task.items)
                ],
            }

    def values(self, place: int) -> dict[str, Any] | None:
        """The values of one item; None where there is no such item."""
        return document(self._task.items[place]) if 0 <= place < len(self._task.items) else None

    def decide(self, choice: Choice) -> dict[str, Any]:
        """Store a decision; return the state of its item.

        Raises:
            ValueError: there is no such item, or the label or the numbers are invalid.
            CommandError: the write failed.
        """
        with self._lock:
            place = self._places.get(choice.id)
            if place is None:
                raise ValueError("expected the id of a window of this folder")
            label = choice.label
            self._check_values(choice)
            if label is not None:
                if not label.strip() or not label.isprintable() or len(label) > MOST_LABEL_CHARACTERS:
                    raise ValueError(f"expected a label of 1 to {MOST_LABEL_CHARACTERS} characters on one line")
                if label not in self._labels:
                    if len(self._labels) >= MOST_LABELS:
                        raise ValueError(f"expected at most {MOST_LABELS} labels")
                    self._labels.append(label)
            skipped = choice.skipped and label is None and not choice.values
            self._file.add(Decision(id=choice.id, label=label, values=choice.values, skipped=skipped, time=time.time()))
            return self._state(place)

    def _check_values(self, choice: Choice) -> None:
        kind, names = self._task.kind, self._task.labels
        if kind == "one":
            if choice.values:
                raise ValueError("expected a label, found numbers")
            return
        if choice.label is not None:
            raise ValueError(f"expected numbers for {', '.join(names)}, found a label")
        if choice.values and set(choice.values) != set(names):
            raise ValueError(f"expected a number for each of {', '.join(names)}, found {', '.join(choice.values)}")
        if kind == "several" and not set(choice.values.values()) <= {0.0, 1.0}:
            raise ValueError("expected 1 or 0 for each label")
        if any(abs(value) > LARGEST for value in choice.values.values()):
            raise ValueError(f"expected numbers of at most {LARGEST:.2g}")

    def _state(self, place: int) -> dict[str, Any]:
        """What is known of an item: the decision of a person, else the truth that came with it."""
        item = self._task.items[place]
        choice = self._file.latest.get(item.id)
        if choice is None or not (choice.is_truth or choice.skipped):
            return {"label": item.label, "values": item.truth, "skipped": False, "decided": False}
        return {"label": choice.label, "values": choice.values, "skipped": choice.skipped, "decided": True}


class LabelServer(ThreadingHTTPServer):
    """Serves the page.

    Args:
        labelling: what it shows.
        port: 0 for any that is free.
    """

    daemon_threads = True

    def __init__(self, labelling: Labelling, port: int = 0) -> None:
        self.labelling = labelling
        self.secret = secrets.token_urlsafe(16)
        super().__init__(("127.0.0.1", port), _LabelHandler)

    @property
    def url(self) -> str:
        """Of the page."""
        return f"http://127.0.0.1:{self.server_port}/{self.secret}/"


class _LabelHandler(BaseHTTPRequestHandler):
    server: LabelServer
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        """The page, the overview, or the values of one item."""
        path = self._admitted()
        labelling = self.server.labelling
        if path is None:
            return
        if path == "":
            page = files("converter.labelling").joinpath("page.html").read_bytes()
            self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
        elif path == "items":
            self._overview()
        elif path.startswith("items/") and path[6:].isascii() and path[6:].isdigit() and len(path) < 20:
            found = labelling.values(int(path[6:]))
            if found is None:
                self._refuse(HTTPStatus.NOT_FOUND, "no such item")
            else:
                self._json(found)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "not found")

    def _overview(self) -> None:
        try:
            self._json(self.server.labelling.overview())
        except CommandError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def do_POST(self) -> None:
        """A decision."""
        path = self._admitted()
        if path is None:
            return
        origin, length = self.headers.get("Origin"), self.headers.get("Content-Length", "")
        if path != "decisions":
            self._refuse(HTTPStatus.NOT_FOUND, "not found")
        elif origin not in (None, f"http://{self.headers.get('Host')}"):
            self._refuse(HTTPStatus.FORBIDDEN, "expected this page")
        elif not length.isascii() or not length.isdigit() or int(length[:9]) > MOST_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected at most {MOST_BODY_BYTES} bytes")
        else:
            self._decide(self.rfile.read(int(length)))

    def _decide(self, body: bytes) -> None:
        try:
            choice = msgspec.json.decode(body, type=Choice)
            self._json(self.server.labelling.decide(choice))
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except CommandError as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _admitted(self) -> str | None:
        """The path behind the secret; None if the request was refused."""
        hosts = {f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")}
        prefix = f"/{self.server.secret}/"
        if self.headers.get("Host") not in hosts:
            self._refuse(HTTPStatus.FORBIDDEN, "expected the loopback as host")
        elif not secrets.compare_digest(self.path[: len(prefix)].encode(), prefix.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "not found: open the whole address that the command printed")
        else:
            return self.path[len(prefix) :]
        return None

    def _json(self, document_: dict[str, Any]) -> None:
        self._answer(HTTPStatus.OK, msgspec.json.encode(document_), "application/json")

    def _refuse(self, status: HTTPStatus, why: str) -> None:
        self.close_connection = True
        self._answer(status, msgspec.json.encode({"error": why}), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Content-Security-Policy", _POLICY),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base
        """Log nothing: the terminal shows only the address."""
