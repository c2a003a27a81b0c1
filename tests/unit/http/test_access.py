"""Who is let in: probes without the secret, named hosts and sites, a path in front; and no one else."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.addresses import host_fault, listening_fault, origin_fault, prefix_fault
from edge_runtime.http.app import App
from edge_runtime.http.auth import Access, access_by
from edge_runtime.http.live_view import Board
from edge_runtime.http.served_model import Served
from tests.support import builders
from tests.support.asking import ask

HEALTH = ("/healthz", "/v2/health/live", "/v2/health/ready", "/ping")
SITE = "https://dash.example.org"
READING = b'{"temperature": 21.5, "humidity": 48.25}'


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model on demand."""
    path = builders.classification().save(tmp_path_factory.mktemp("bundle") / "activity.onnx")
    return Served("activity", Model(open_bundle(path)), device="d", start=1)


def made(served: Served, access: Access, prefix: str = "") -> App:
    """The routes, with these rules."""
    return App([served], Board(health=lambda: {"device": "d"}), access=access, prefix=prefix)


@pytest.mark.parametrize("path", [*HEALTH, "/healthz/", "/v2/health/ready/"])
@pytest.mark.parametrize("secret", ["", "Bearer wrong", "Bearer s3cret"])
def test_health_is_told_without_the_token_and_nothing_more(served: Served, path: str, secret: str) -> None:
    """A probe learns that we are up and ready: no name, no version, no model."""
    answered = ask(made(served, Access(token="s3cret")), "GET", path, authorization=secret)  # noqa: S106 - no real one
    assert answered.status == 200
    assert set(answered.document) <= {"status", "live", "ready"}


@pytest.mark.parametrize(
    "path", ["/", "/v2", "/v2/models", "/v2/models/activity/ready", "/health.json", "/metrics", "/docs", "/nowhere"]
)
def test_everything_else_wants_the_token(served: Served, path: str) -> None:
    """What is not health stays behind the secret, also a path that leads nowhere."""
    assert ask(made(served, Access(token="s3cret")), "GET", path).status == 401  # noqa: S106


@pytest.mark.parametrize("path", HEALTH)
def test_health_by_token_is_refused_without_it(served: Served, path: str) -> None:
    """`health = "token"` closes the probes' routes too."""
    app = made(served, access_by("s3cret", health="token", metrics="token"))
    assert ask(app, "GET", path).status == 401
    assert ask(app, "GET", path, authorization="Bearer s3cret").status == 200


def test_metrics_are_open_by_choice(served: Served) -> None:
    """A scraper without the secret reads `/metrics` where that is wanted, and no other route."""
    app = made(served, access_by("s3cret", health="token", metrics="open"))
    assert ask(app, "GET", "/metrics").status == 200
    assert ask(app, "POST", "/metrics").status == 405
    assert ask(app, "GET", "/health.json").status == 401
    assert ask(app, "GET", "/metrics/../health.json").status == 401


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8080", 200),
        ("ml.example.org", 200),
        ("ML.Example.Org:443", 200),
        ("ml.example.org.", 200),
        ("[fd00::7]:8080", 200),
        ("evil.example", 403),
        ("ml.example.org.evil.example", 403),
        ("", 403),
    ],
)
def test_the_hosts_that_are_named_are_ours(served: Served, host: str, status: int) -> None:
    """A proxy that passes its public name on gets through; a name that was made to point here does not."""
    app = made(served, Access(hosts=frozenset({"ml.example.org", "[fd00::7]"})))
    assert ask(app, "GET", "/healthz", host=host).status == status


def test_a_named_site_may_ask(served: Served) -> None:
    """Its browser asks first, without a token, and gets answers that its page may read, refusals as well."""
    app = made(served, Access(token="s3cret", origins=frozenset({SITE})))  # noqa: S106
    asked: dict[str, Any] = {"origin": SITE, "access_control_request_method": "POST", "sec_fetch_site": "cross-site"}
    first = ask(app, "OPTIONS", "/predict/activity", **asked)
    assert (first.status, first.body) == (204, b"")
    assert first.headers["Access-Control-Allow-Origin"] == SITE
    assert "POST" in first.headers["Access-Control-Allow-Methods"]
    assert "Authorization" in first.headers["Access-Control-Allow-Headers"]
    assert "Content-Length" not in first.headers
    secret: dict[str, Any] = {"authorization": "Bearer s3cret", "origin": SITE, "sec_fetch_site": "cross-site"}
    found = ask(app, "POST", "/predict/activity", READING, content_type="application/json", **secret)
    assert (found.status, found.headers["Access-Control-Allow-Origin"]) == (200, SITE)
    assert "Origin" in found.headers["Vary"]
    refused = ask(app, "GET", "/v2", origin=SITE)
    assert (refused.status, refused.headers["Access-Control-Allow-Origin"]) == (401, SITE)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://dash.example.org", f"{SITE}:8443", "https://"]
)
def test_no_other_site_may_ask(served: Served, origin: str) -> None:
    """An origin counts as a whole: scheme, host and port."""
    app = made(served, Access(origins=frozenset({SITE})))
    for method, path in (("OPTIONS", "/predict/activity"), ("GET", "/v2"), ("GET", "/events")):
        answered = ask(app, method, path, origin=origin, access_control_request_method="POST")
        assert answered.status == 403
        assert not [name for name in answered.headers if name.startswith("Access-Control")]


def test_without_origins_no_answer_speaks_of_them(served: Served) -> None:
    """What is not configured does not show."""
    headers = ask(made(served, Access()), "GET", "/v2").headers
    assert "Vary" not in headers
    assert ask(made(served, Access()), "OPTIONS", "/v2", origin=SITE, access_control_request_method="GET").status == 403


@pytest.mark.parametrize("path", ["/v2/models/activity", "/edge/v2/models/activity", "/edge/v2/models/activity/"])
def test_a_path_in_front_is_taken_off(served: Served, path: str) -> None:
    """Whether the proxy takes it off or not, the same route answers."""
    assert ask(made(served, Access(), "/edge"), "GET", path).document["name"] == "activity"


@pytest.mark.parametrize("path", ["/edgev2", "/other/v2", "/edge/edge/v2", "/v2//", "/edge//v2"])
def test_another_path_in_front_is_not(served: Served, path: str) -> None:
    """Only the whole prefix counts, once."""
    assert ask(made(served, Access(), "/edge"), "GET", path).status == 404


def test_pages_find_what_they_load_behind_a_prefix(served: Served) -> None:
    """The status page names its parts from its own place, so it has to end in a slash; tools learn the prefix."""
    app = made(served, Access(), "/edge")
    answered = ask(app, "GET", "/edge")
    assert (answered.status, answered.headers["Location"]) == (308, "/edge/")
    assert ask(app, "GET", "/edge/").status == 200
    assert ask(app, "GET", "/edge/openapi.json").document["servers"] == [{"url": "/edge"}]
    assert "servers" not in ask(made(served, Access()), "GET", "/openapi.json").document


@pytest.mark.parametrize(
    "path", ["/v2/", "/v2/health/ready/", "/v2/models/", "/v2/models/activity/", "/metrics/", "/docs/"]
)
def test_a_slash_at_the_end_changes_nothing(served: Served, path: str) -> None:
    """Clients that end their paths with a slash are answered."""
    assert ask(made(served, Access()), "GET", path).status == 200


def test_events_are_not_kept_by_a_proxy(served: Served) -> None:
    """The answer asks nginx to pass events on at once."""
    assert ask(made(served, Access()), "GET", "/events").headers["X-Accel-Buffering"] == "no"


def test_the_page_of_routes_loads_nothing_from_elsewhere(served: Served) -> None:
    """No address of another host stands in it, and its policy forbids any."""
    answered = ask(made(served, Access()), "GET", "/docs")
    assert answered.status == 200
    assert b"//" not in answered.body.replace(b"// ", b"")
    assert "default-src 'none'" in answered.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("fault", "good", "bad"),
    [
        (listening_fault, ["127.0.0.1:0", "[::1]:80", "unix:/a"], ["80", ":80", "h:x", "unix:", "unix:a", "h:70000"]),
        (host_fault, ["a", "a.b-c", "10.0.0.1", "[::1]"], ["", "a:80", "*", "a/b", "http://a", "-", "a b"]),
        (origin_fault, ["http://a", "https://a.b:8443"], ["", "a", "*", "null", "https://a/", "https://a/b", "ftp://a"]),
        (prefix_fault, ["", "/a", "/a/b"], ["/", "a", "/a/", "/../a", "/a b", "/a//b", "/%41"]),
    ],
)  # fmt: skip
def test_what_is_configured_is_judged(fault: object, good: list[str], bad: list[str]) -> None:
    """A mistake is found at the start, and not by the first client."""
    assert callable(fault)
    assert [fault(each) for each in good] == [None] * len(good)
    assert [each for each in bad if fault(each) is None] == []


def test_the_openapi_file_is_json_also_with_a_prefix(served: Served, tmp_path: Path) -> None:
    """The prefix is put into the file's text; the rest of it stays."""
    plain = ask(made(served, Access()), "GET", "/openapi.json").document
    (tmp_path / "copy.json").write_text(json.dumps(plain))
    assert ask(made(served, Access(), "/edge"), "GET", "/openapi.json").document == {
        **plain,
        "servers": [{"url": "/edge"}],
    }


@pytest.mark.parametrize(
    ("user", "password", "status"),
    [("edge", "s3cret", 200), ("", "s3cret", 200), ("s3cret", "", 401), ("s3cret", "x", 401)],
)
def test_the_password_of_a_login_dialog_is_the_token_and_the_user_is_not(
    served: Served, user: str, password: str, status: int
) -> None:
    """A browser sends both; what stands before the colon is kept in its history."""
    app = made(served, Access(token="s3cret"))  # noqa: S106
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert ask(app, "GET", "/v2", authorization=f"Basic {login}").status == status
