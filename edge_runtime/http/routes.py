"""The routes: a handler for each path. A new one is a function with its `Route`, and one line in `ROUTES`.

A handler gets the application (`Serving`), the request and the named parts of the path. It returns the answer, or the
`Work` for a model; it refuses by `HttpError`. `openapi.json` describes every route for tools.
"""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import NamedTuple, Protocol

import msgspec

from edge_runtime import __version__
from edge_runtime.http import metrics
from edge_runtime.http import oip_v2 as tensors
from edge_runtime.http import predict_api as named
from edge_runtime.http import rows_api as rows
from edge_runtime.http import triton_api as triton
from edge_runtime.http.auth import Group
from edge_runtime.http.counts import Counts
from edge_runtime.http.event_stream import Watching
from edge_runtime.http.live_view import Board
from edge_runtime.http.page_facts import page_facts
from edge_runtime.http.responses import HttpError, Request, Response, busy, json_response
from edge_runtime.http.scorer import Scorer, Work
from edge_runtime.http.served_model import Served, find
from edge_runtime.http.truth_api import TakeTruth, tell_truth

STALE_S = 30.0  # a loop that has not answered for so long is not healthy

Parts = Mapping[str, str]


class Serving(Protocol):
    """The part of the application that a handler may use."""

    models: dict[str, Served]
    board: Board
    counts: Counts
    scorer: Scorer
    pause: Callable[[], None]
    is_stopped: bool
    prefix: str
    truth: TakeTruth | None


class Route(NamedTuple):
    """One path.

    Attributes:
        name: in the metrics.
        pattern: of the whole path, a regular expression whose named groups are the parts.
        method: GET (which includes HEAD) or POST.
        handler: answers.
        group: for routes that may be open without a token; the pattern of such a route is its path.
    """

    name: str
    pattern: str
    method: str
    handler: Callable[[Serving, Request, Parts], Response | Work]
    group: Group = ""


def _page(app: Serving, request: Request, _parts: Parts) -> Response:
    if app.prefix and request.path == app.prefix:  # the page loads its files by relative paths
        return Response(308, headers={"Location": f"{app.prefix}/"})
    return _html("page.html")


def _docs(_app: Serving, _request: Request, _parts: Parts) -> Response:
    return _html("docs.html")


def _html(name: str) -> Response:
    """A page that loads nothing from other sites, enforced by its headers."""
    return Response(
        body=_file(name),
        type="text/html; charset=utf-8",
        headers={
            "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-cache",
        },
    )


def _openapi(app: Serving, _request: Request, _parts: Parts) -> Response:
    body = _file("openapi.json")
    if app.prefix:
        servers = msgspec.json.encode({"servers": [{"url": app.prefix}]})
        body = servers[:-1] + b"," + body.lstrip()[1:]
    return Response(body=body)


def _events(app: Serving, request: Request, _parts: Parts) -> Response:
    # nginx would keep events until its buffer is full: 4 KiB, which takes a quiet device half a minute.
    head = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    if request.method == "HEAD":
        return Response(type="text/event-stream", headers=head)
    watching = Watching.begin(app.board, lambda: page_facts(app.models))
    if watching is None:
        raise busy("enough pages are open already: close one of them")
    return Response(type="text/event-stream", headers=head, watching=watching)


def _health(app: Serving, _request: Request, _parts: Parts) -> Response:
    return json_response(app.board.health())


def _healthz(app: Serving, _request: Request, _parts: Parts) -> Response:
    app.board.health()
    if app.board.age_s > STALE_S:
        raise HttpError(503, f"the daemon has not answered for {app.board.age_s:.0f} s")
    return json_response({"status": "ok"})


def _metrics(app: Serving, _request: Request, _parts: Parts) -> Response:
    counts, memory = app.counts.together()
    health = app.board.health()
    if memory:
        health = {**health, "rss_bytes": health.get("rss_bytes", 0) + memory}
    waiting = {name: app.scorer.waiting_for(served.model) for name, served in app.models.items()}
    return Response(body=metrics.render(health, counts.requests, counts.models, waiting), type=metrics.TYPE)


def _server(_app: Serving, _request: Request, _parts: Parts) -> Response:
    return json_response({"name": "edge-runtime", "version": __version__, "extensions": _EXTENSIONS})


def _live(_app: Serving, _request: Request, _parts: Parts) -> Response:
    return json_response({"live": True})


def _ready(app: Serving, _request: Request, _parts: Parts) -> Response:
    if app.is_stopped or not app.models:
        raise HttpError(503, "no model is ready")
    return json_response({"ready": True, "live": True})


def _ping(app: Serving, request: Request, parts: Parts) -> Response:
    _ready(app, request, parts)
    return json_response({"status": "ok"})


def _index(app: Serving, _request: Request, _parts: Parts) -> Response:
    return json_response(
        [
            {"name": served.name, "version": served.manifest.version, "state": "READY", "reason": ""}
            for served in app.models.values()
        ]
    )


def _model(app: Serving, _request: Request, parts: Parts) -> Response:
    return json_response(tensors.metadata(_find(app, parts)))


def _model_ready(app: Serving, _request: Request, parts: Parts) -> Response:
    name = _find(app, parts).name
    if app.is_stopped:
        raise HttpError(503, f"{name} is not ready: the server is stopping")
    return json_response({"name": name, "ready": True})


def _config(app: Serving, _request: Request, parts: Parts) -> Response:
    return json_response(triton.config(_find(app, parts)))


def _stats(app: Serving, _request: Request, parts: Parts) -> Response:
    models = [_find(app, parts)] if "model" in parts else list(app.models.values())
    found, _ = app.counts.together()
    return json_response(
        {"model_stats": [found.model(each.name).document(each.name, each.manifest.version) for each in models]}
    )


def _models_v1(app: Serving, _request: Request, _parts: Parts) -> Response:
    return json_response({"models": list(app.models)})


def _infer(app: Serving, request: Request, parts: Parts) -> Work:
    header = request.headers.get(tensors.LENGTH_HEADER.lower())
    return tensors.infer(_asked(app, request, parts), request.body, header, app.pause)


def _predict(app: Serving, request: Request, parts: Parts) -> Work:
    return named.predict(_asked(app, request, parts), request.body)


def _predict_v1(app: Serving, request: Request, parts: Parts) -> Work:
    return rows.predict_v1(_asked(app, request, parts), request.body, app.pause)


def _invocations(app: Serving, request: Request, _parts: Parts) -> Work:
    if len(app.models) != 1:
        known = ", ".join(app.models) or "none"
        raise HttpError(422, f"expected one model behind /invocations, found {known}: ask /v1/models/MODEL:predict")
    served = _asked(app, request, {"model": next(iter(app.models))})
    return rows.invoke(served, request.body, request.headers.get("content-type", ""), app.pause)


def _truth(app: Serving, request: Request, parts: Parts) -> Response:
    return tell_truth(app.truth, parts["model"], request.body)


def _asked(app: Serving, request: Request, parts: Parts) -> Served:
    """The model of a request; from now on the request counts for that model."""
    served = _find(app, parts)
    request.model = served.name
    return served


def _find(app: Serving, parts: Parts) -> Served:
    return find(app.models, parts["model"], parts.get("version"))


def _file(name: str) -> bytes:
    """A file of this package."""
    return resources.files("edge_runtime.http").joinpath(name).read_bytes()


_EXTENSIONS = ["binary_tensor_data", "model_configuration", "statistics"]
_MODEL = r"/v2/models/(?P<model>[^/]+)(/versions/(?P<version>[^/]+))?"
ROUTES = [
    Route("predict", r"/predict/(?P<model>[^/]+)", "POST", _predict),
    Route("truth", r"/truth/(?P<model>[^/]+)", "POST", _truth),
    Route("infer", _MODEL + r"/infer", "POST", _infer),
    Route("page", r"/", "GET", _page),
    Route("docs", r"/docs", "GET", _docs),
    Route("openapi", r"/openapi\.json", "GET", _openapi),
    Route("events", r"/events", "GET", _events),
    Route("health", r"/health\.json", "GET", _health),
    Route("healthz", r"/healthz", "GET", _healthz, "health"),
    Route("metrics", r"/metrics", "GET", _metrics, "metrics"),
    Route("server", r"/v2", "GET", _server),
    Route("live", r"/v2/health/live", "GET", _live, "health"),
    Route("ready", r"/v2/health/ready", "GET", _ready, "health"),
    Route("ping", r"/ping", "GET", _ping, "health"),
    Route("index", r"/v2/models", "GET", _index),
    Route("repository", r"/v2/repository/index", "POST", _index),
    Route("invocations", r"/invocations", "POST", _invocations),
    Route("predict_v1", r"/v1/models/(?P<model>[^/]+):predict", "POST", _predict_v1),
    Route("models_v1", r"/v1/models", "GET", _models_v1),
    Route("model_v1", r"/v1/models/(?P<model>[^/:]+)", "GET", _model_ready),
    Route("all_stats", r"/v2/models/stats", "GET", _stats),
    Route("stats", _MODEL + r"/stats", "GET", _stats),
    Route("config", _MODEL + r"/config", "GET", _config),
    Route("model", _MODEL, "GET", _model),
    Route("model_ready", _MODEL + r"/ready", "GET", _model_ready),
]
