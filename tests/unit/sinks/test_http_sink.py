"""The HTTP sink against a real server: batches, refusals, outages and what a kill leaves."""

import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_runtime.config.load import load_config
from edge_runtime.errors import ConfigError
from edge_runtime.sinks import http_sink
from edge_runtime.system.loop import Timer
from tests.support import builders
from tests.support.broker import CertificateAuthority
from tests.support.ports import find_free_port
from tests.support.post_server import Posted, PostServer
from tests.unit.sinks.conftest import Begin


@pytest.fixture
def server() -> Iterator[PostServer]:
    """A server that takes everything."""
    found = PostServer()
    yield found
    found.stop()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_sink, "_FIRST_PAUSE_S", 0.02)


def payloads(*numbers: int) -> list[bytes]:
    """Predictions as JSON."""
    return [b'{"id":"d/m/-/1/%d","seq":%d}' % (number, number) for number in numbers]


def numbers(server: PostServer) -> list[int]:
    """Those that were accepted, in their order."""
    return [each["seq"] for each in server.accepted]


def test_what_comes_while_a_request_is_under_way_is_one_batch(server: PostServer, tmp_path: Path, begin: Begin) -> None:
    """In order, of at most `max_batch`, as an array of objects; with a healthy server nothing is written to disk."""
    server.delay = 0.05
    bench = begin("http", tmp_path, url=server.url, max_batch=10)
    bench.until(lambda: bench.sink.state.endswith("ready"))
    bench.offer(*payloads(*range(25)))
    bench.until(lambda: bench.counters.counts["published"] == 25)
    assert numbers(server) == list(range(25))
    assert [len(each.predictions) for each in server.posted] == [10, 10, 5]
    assert server.posted[0].headers["content-type"] == "application/json"
    assert server.posted[0].path == "/predictions"
    assert bench.counters.counts["stored"] == 0
    assert "delayed" not in server.accepted[0]


def test_a_server_that_is_away_is_one_sentence_and_nothing_is_lost(tmp_path: Path, begin: Begin) -> None:
    """Predictions wait on disk, survive the end of the process, and say that they are late."""
    port = find_free_port()
    url = f"http://127.0.0.1:{port}/predictions?key=s3cret"
    bench = begin("http", tmp_path, url=url, retry_max=0.05, max_batch=7)
    bench.offer(*payloads(*range(30)))
    bench.until(lambda: bench.counters.errors["no_answer"] > 3)
    bench.until(lambda: bench.counters.counts["stored"] == 30)
    assert bench.changes == 1
    assert "Connection refused; next attempt in" in bench.sink.state
    assert "; 30 wait" in bench.sink.state
    assert "s3cret" not in bench.sink.state
    bench.end()
    server = PostServer(port)
    again = begin("http", tmp_path, url=url, max_batch=7)
    again.until(lambda: again.counters.counts["published"] == 30)
    assert numbers(server) == list(range(30))
    assert all(each["delayed"] is True for each in server.accepted)
    server.stop()


def test_an_outage_in_the_middle_loses_and_reorders_nothing(tmp_path: Path, begin: Begin, server: PostServer) -> None:
    """What was in the failed request comes again with it; an outage of many attempts sets nothing aside."""
    failing = [True]
    server.judge = lambda _: (503, {}) if failing else (200, {})
    bench = begin("http", tmp_path, url=server.url, retry_max=0.02, max_batch=4)
    bench.offer(*payloads(*range(10)))
    bench.until(lambda: bench.counters.errors["no_answer"] > 40)
    bench.offer(*payloads(*range(10, 20)))
    assert "answered 503 (so it is); next attempt in" in bench.sink.state
    failing.clear()
    bench.until(lambda: bench.counters.counts["published"] == 20)
    assert numbers(server) == list(range(20))
    assert not bench.counters.dropped
    assert bench.sink.state.endswith("ready")
    assert bench.changes == 2
    assert [each.body.count(b'"delayed"') for each in server.posted[:3]] == [0, 4, 4]
    assert [each.get("delayed") for each in server.accepted[:8]] == [True] * 8, "the next request's waited too"


def test_a_prediction_that_the_server_cannot_take_is_set_aside_alone(
    tmp_path: Path, begin: Begin, server: PostServer
) -> None:
    """Its batch is sent one by one, and the others arrive."""
    server.judge = lambda posted: (422, {}) if any(each["seq"] == 5 for each in posted.predictions) else (200, {})
    bench = begin("http", tmp_path, url=server.url)
    bench.until(lambda: not bench.sink.state.endswith("opening"))
    bench.offer(*payloads(*range(10)))
    bench.until(lambda: bench.counters.counts["published"] == 9 and bench.counters.dropped["unsendable"])
    assert numbers(server) == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert bench.counters.dropped == {"unsendable": 1}
    assert bench.counters.errors["refused_by_server"] == 1
    bench.offer(*payloads(11))
    bench.until(lambda: bench.counters.counts["published"] == 10)
    assert bench.sink.state.endswith("ready")


def test_a_server_that_says_when_to_come_back_is_heeded(tmp_path: Path, begin: Begin, server: PostServer) -> None:
    """`Retry-After` in seconds; until then there is no request."""
    server.judge = lambda _: (429, {"Retry-After": "3600"})
    bench = begin("http", tmp_path, url=server.url)
    bench.offer(*payloads(1))
    bench.until(lambda: bench.counters.errors["no_answer"])
    assert "next attempt in 3600 s" in bench.sink.state
    assert len(server.posted) == 1


def test_a_server_that_is_away_is_asked_less_and_less_often(
    tmp_path: Path, begin: Begin, server: PostServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause doubles up to `retry_max`, with jitter, and is the first one again once the server has answered."""
    monkeypatch.setattr("edge_runtime.sinks.http_sink.random.uniform", lambda _low, high: high)
    server.judge = lambda _: (503, {})
    bench = begin("http", tmp_path, url=server.url, retry_max=0.1)
    pauses: list[float] = []
    later = bench.loop.call_later

    def call_later(delay: float, callback: Callable[[], object]) -> Timer:
        if callback == bench.sink._link._post:
            pauses.append(delay)
        return later(delay, callback)

    bench.loop.call_later = call_later  # type: ignore[method-assign]
    bench.offer(*payloads(1))
    bench.until(lambda: len(pauses) == 5)
    assert pauses == [0.02, 0.04, 0.08, 0.1, 0.1]
    server.judge = lambda _: (200, {})
    bench.until(lambda: bench.counters.counts["published"] == 1)
    server.judge = lambda _: (503, {})
    bench.offer(*payloads(2))
    bench.until(lambda: len(pauses) > 5)
    assert pauses[5] == 0.02


def test_a_stop_waits_for_the_answer_to_the_request_that_is_under_way(
    tmp_path: Path, begin: Begin, server: PostServer
) -> None:
    """Its predictions are on the disk by then; without the answer they would come twice at the next start."""
    answer = threading.Event()

    def judge(_posted: Posted) -> tuple[int, dict[str, str]]:
        answer.wait(20)
        return 200, {}

    server.judge = judge
    bench = begin("http", tmp_path, url=server.url)
    bench.offer(*payloads(1))
    bench.until(lambda: server.posted and bench.counters.counts["stored"] == 1)
    bench.sink.drain()
    assert not bench.sink.is_safe
    answer.set()
    bench.until(lambda: bench.sink.is_safe)
    assert bench.counters.counts["published"] == 1


def test_the_token_is_read_for_each_request_and_never_shown(tmp_path: Path, begin: Begin, server: PostServer) -> None:
    """A new token needs no restart; one that would break the header is refused without its text."""
    token = tmp_path / "token"
    token.write_text("first\nnote\n")
    bench = begin("http", tmp_path, url=server.url, token_file=str(token), retry_max=0.02)
    bench.offer(*payloads(1))
    bench.until(lambda: len(server.posted) == 1)
    token.write_text("s3cret one\r\n")
    bench.offer(*payloads(2))
    bench.until(lambda: bench.counters.errors["no_answer"])
    assert "expected a token without blanks" in bench.sink.state
    assert "s3cret" not in bench.sink.state
    token.write_text("second")
    bench.until(lambda: len(server.posted) == 2)
    assert [each.headers["authorization"] for each in server.posted] == ["Bearer first", "Bearer second"]


def test_a_server_that_closes_between_requests_costs_nothing(tmp_path: Path, begin: Begin, server: PostServer) -> None:
    """The connection is made anew, and that is no fault."""
    server.judge = lambda _: (200, {"Connection": "close"})
    bench = begin("http", tmp_path, url=server.url)
    for number in range(3):
        bench.offer(*payloads(number))
        while bench.counters.counts["published"] <= number:
            bench.loop.run_once(0.02)
    assert not bench.counters.errors


def test_what_is_no_http_is_one_sentence(tmp_path: Path, begin: Begin) -> None:
    """Another service on the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bench = begin("http", tmp_path, url=f"http://127.0.0.1:{listener.getsockname()[1]}/")
        bench.offer(*payloads(1))
        bench.until(lambda: select.select([listener], [], [], 0)[0])
        peer, _ = listener.accept()
        peer.sendall(b"220 smtp ready\r\n")
        bench.until(lambda: bench.counters.errors["no_answer"])
        peer.close()
    assert "BadStatusLine" in bench.sink.state


def test_a_server_that_never_answers_holds_up_neither_loop_nor_stop(tmp_path: Path, begin: Begin) -> None:
    """What it was sent is on disk, and the stop ends the request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        bench = begin("http", tmp_path, url=f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=300)
        bench.offer(*payloads(1, 2))
        bench.until(lambda: bench.counters.counts["stored"] == 2)
        bench.end()
    again = begin("http", tmp_path, url="http://127.0.0.1:9/")
    again.until(lambda: "; 2 wait" in again.sink.state)


def test_tls_is_verified(tmp_path: Path, begin: Begin) -> None:
    """Against `ca_file`; a certificate of another authority is refused, and nothing is sent."""
    ours, other = CertificateAuthority(tmp_path / "ours"), CertificateAuthority(tmp_path / "other", "other")
    certificate, key = ours.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = PostServer(tls=context)
    url = server.url.replace("http:", "https:")
    bench = begin("http", tmp_path / "a", url=url, ca_file=str(other.certificate))
    bench.offer(*payloads(1))
    bench.until(lambda: bench.counters.errors["no_answer"])
    assert "CERTIFICATE_VERIFY_FAILED" in bench.sink.state or "certificate verify failed" in bench.sink.state
    assert not server.posted
    good = begin("http", tmp_path / "b", url=url, ca_file=str(ours.certificate))
    good.offer(*payloads(1))
    good.until(lambda: good.counters.counts["published"] == 1)
    server.stop()


def test_alarms_are_kept_longest_where_the_file_is_full(tmp_path: Path, begin: Begin) -> None:
    """The bound is that of an outbox: the oldest of the lowest priority goes first, and is counted."""
    port = find_free_port()
    bench = begin("http", tmp_path, url=f"http://127.0.0.1:{port}/", max_bytes=16_384)
    bench.offer(*payloads(0), alarm=True)
    filler = [json.dumps({"id": "x", "seq": number, "text": str(number) * 300}).encode() for number in range(1, 300)]
    bench.offer(*filler)
    bench.until(lambda: bench.counters.dropped["outbox_full"])
    bench.end()
    server = PostServer(port)
    again = begin("http", tmp_path, url=server.url)
    again.until(lambda: server.accepted)
    assert server.accepted[0]["seq"] == 0
    server.stop()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('url = "ftp://host/"', 'sink[0] "s".url: expected https://HOST:PORT/PATH or http://HOST:PORT/PATH'),
        ('url = "https://user:s3cret@host/"', "found a user or password in it: write a token into a file"),
        ('url = "http://host:99999/"', "found an address that is none"),
        ('url = "http://host/a b"', "found another address: mend it"),
        ('url = "http://host/"\nca_file = "device.toml"', "ca_file: expected a url with https:// beside it"),
        ('url = "http://host/"\nmax_batch = 0', "max_batch: expected a whole number from 1 to 1000, found 0"),
        ('url = "http://host/"\nargv = []', 'sink[0] "s".argv: unknown key'),
        ("", 'sink[0] "s".url: expected text that is not empty, but the key is missing'),
    ],
)
def test_a_wrong_table_is_refused_with_its_place(tmp_path: Path, line: str, expected: str) -> None:
    """And no secret is in the message."""
    bundle = builders.classification(name="comfort").save(tmp_path / "comfort.onnx")
    path = tmp_path / "device.toml"
    path.write_text(
        '[device]\nid = "room"\n[[source]]\nname = "climate"\ntype = "mqtt"\ntopics = ["s/{key}"]\n'
        f'[[model]]\nname = "comfort"\nbundle = "{bundle}"\nsource = "climate"\n'
        f'[upstream]\nurl = "mqtt://localhost:1"\n[[sink]]\nname = "s"\ntype = "http"\n{line}\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert expected in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_the_bodies_are_arrays_of_what_was_given(server: PostServer, tmp_path: Path, begin: Begin) -> None:
    """Byte for byte."""
    bench = begin("http", tmp_path, url=server.url)
    bench.offer(*payloads(1, 2))
    bench.until(lambda: bench.counters.counts["published"] == 2)
    assert b"".join(each.body for each in server.posted) == b"[" + b",".join(payloads(1, 2)) + b"]"
    assert isinstance(server.posted[0], Posted)
