"""Every number on the page of guarantees is the number of the code.

The tests of the promises shorten times, so that a constant that was changed by mistake would pass them all. Here each
number stands with its sentence and with what the code says; one that is put on the page without being looked up here is
a failure as well.
"""

import random
import re
from pathlib import Path

import pytest

from edge_runtime.bringup import part_writer
from edge_runtime.config.tables import UpstreamTable
from edge_runtime.daemon.state import StateFolder
from edge_runtime.delivery import outbox, outbox_file
from edge_runtime.delivery.outbox import PRIORITY_ROUTINE, Outbox
from edge_runtime.delivery.outbox_file import OutboxFile
from edge_runtime.drift import monitor
from edge_runtime.http import server
from edge_runtime.mqtt import connection, subscriptions, whole_socket
from edge_runtime.readings import Receipt
from edge_runtime.stream import rate, seen
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLink, SteppedLoop, SteppedStore
from tests.system.fleet.test_service import PROBES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guarantees.md"
# Names of protocols and programs, and pairs and repeats that are no figures.
_NO_FIGURE = re.compile(
    r"`[^`]*`|QoS 1|MQTT 5|MQTT 3\.1\.1|mosquitto 2\.0|set 5 wherever"
    r"|predictions come twice|are not used twice|two brokers|[Tt]wo starts|[Tt]wo readings|With 3\.1\.1 such"
    r"|close its half|no half line"
)
_NUMBER = re.compile(
    r"\d[\d.,]*\d|\d|\b(?:two|three|four|five|six|seven|eight|nine|ten|thirteen|twice|minutes?|half|third|quarter|fifth"
    r"|tenth|percent|hours?|dozen|about a second|a second of)\b",
    re.IGNORECASE,
)
CONSTANTS = [
    ("or 16 MB", whole_socket.MOST_BYTES, 16 << 20),
    ("Only a link that lasted 30 seconds", connection.STABLE_S, 30.0),
    ("tried again after 5 to 300 seconds", (outbox.REFUSED_FIRST_S, outbox.REFUSED_MOST_S), (5.0, 300.0)),
    ("again, after 5 to 600 seconds", (subscriptions.RETRY_FIRST_S, subscriptions.RETRY_MOST_S), (5.0, 600.0)),
    ("by more than a tenth is reported", rate.TOLERANCE, 1.1),
    ("an attempt to connect ends after a minute", connection.CONNECT_PATIENCE_S, 60.0),
    ("the file is tried again within 30 seconds", outbox.REOPEN_MOST_S, 30.0),
    ("the newest three are kept", outbox_file.DAMAGED_FILES_KEPT, 3),
    ("a list of thirteen things", len(PROBES), 13),
    ("has failed for a minute", outbox.ORDER_PATIENCE_S, 60.0),
    ("or after 8,192 readings", 2 * seen.GENERATION, 8192),
    ("its last 4,096 to 8,192 readings with an identity", seen.GENERATION, 4096),
    ("its last 1,024 to 2,048 messages", seen.MESSAGES, 1024),
    ("10,000 to 20,000 keys", seen.KEYS, 10_000),
    ("and of at most 256 keys", monitor.MOST_STREAMS, 256),
    ("restarts it within about a second", server.RESTART_S, 1.0),
    ("loses a second of readings at the most", 2 * part_writer.WRITE_S, 1.0),
    ("The default is 3.1.1", UpstreamTable(url="mqtt://b", topic="t").protocol, "3.1.1"),
]
# Tried below, or in the test that is named.
TRIED = [
    "a quarter more, for the timer",
    "within five percent of",
    "is found within twice",  # contract/core/test_connection.py::test_a_half_open_link_is_found_within_two_keep_alives
    "within one second of an unset clock",
    "before its second window is full",  # unit/stream/test_rate.py::test_a_wrong_rate_is_known_before_the_second_window
    "up to a third of lost readings",  # unit/stream/test_rate.py::test_lost_readings_are_no_wrong_rate
    "unacknowledged readings take half of it",
    # unit/stream/test_memory_per_key.py
    "400 bytes a remembered reading",
    "a window of three numbers 1,500 bytes a key, and 3,200 bytes a key of a model",
    "adds 4 bytes a number",
    "a channel of a key takes at most 2 kB",  # unit/drift/test_monitor.py
]


def _page() -> str:
    return " ".join(_NO_FIGURE.sub("", " ".join(PAGE.read_text().split())).split())


@pytest.mark.parametrize(("sentence", "found", "promised"), CONSTANTS, ids=lambda value: str(value)[:40])
def test_a_number_of_the_page_is_that_of_the_code(sentence: str, found: object, promised: object) -> None:
    """The sentence is on the page, and the code keeps it."""
    assert sentence in _page()
    assert found == promised


def test_every_number_of_the_page_was_looked_up() -> None:
    """A number without a line in this file would be one that nothing holds to the code."""
    page = _page()
    for sentence in (*(sentence for sentence, _, _ in CONSTANTS), *TRIED):
        assert sentence in page
        page = page.replace(sentence, "")
    left = [page[max(0, found.start() - 40) : found.end() + 20] for found in _NUMBER.finditer(page)]
    assert left == []


def test_what_is_not_committed_is_at_most_an_interval_and_a_quarter_old(tmp_path: Path) -> None:
    """Whenever they are made, behind a broker that acknowledges none; and the quarter is needed."""
    loop, store, draw = SteppedLoop(), SteppedStore(tmp_path / "outbox.db"), random.Random(1)
    box = Outbox(loop.as_loop, Counters(), store=store.as_thread, commit_interval=4.0, max_memory_bytes=1 << 30)
    box.attach(SteppedLink(connected=True))
    oldest = 0.0
    for _ in range(2000):
        store.work()
        if draw.random() < 0.02:
            box.offer("m/a", "edge/m/a", b"{}", priority=PRIORITY_ROUTINE, receipt=None)
        loop.advance(0.05)
        since = box._oldest()
        oldest = max(oldest, 0.0 if since is None else loop.now - since)
    assert 4.0 < oldest <= 5.0


@pytest.mark.parametrize("max_bytes", [4_000_000, 64 << 20, 1 << 30])
def test_the_log_of_the_outbox_stays_within_five_percent_of_its_bound(max_bytes: int, tmp_path: Path) -> None:
    """SQLite writes its log back to the file at so many pages; a commit of its own may stand on top."""
    file = OutboxFile(tmp_path / "outbox.db", max_bytes, 1e9)
    file.open()
    assert file._connection is not None
    (pages,) = file._connection.execute("PRAGMA wal_autocheckpoint").fetchone()
    (kept,) = file._connection.execute("PRAGMA journal_size_limit").fetchone()
    file.close()
    assert pages * outbox_file.PAGE_BYTES <= 0.025 * max_bytes
    assert kept <= 0.025 * max_bytes


def test_sources_are_held_once_unacknowledged_readings_take_half_of_the_memory() -> None:
    """Not with the last prediction that fits in half of it, and with the next one."""
    loop, answered = SteppedLoop(), list[bool]()
    box = Outbox(loop.as_loop, Counters(), store=None, commit_interval=1.0, max_memory_bytes=100_000)
    box.on_full.append(answered.append)
    while not answered:
        assert box._held < 100_000
        box.offer("m/a", "edge/m/a", bytes(500), priority=PRIORITY_ROUTINE, receipt=Receipt(lambda: None))
        loop.settle()
    assert 50_000 <= box._held < 51_000


def test_two_starts_within_a_second_share_their_number_only_without_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number counts whole seconds; the folder makes the difference."""
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.2)
    first = StateFolder(None, "d").next_start()
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.9)
    assert StateFolder(None, "d").next_start() == first
    assert StateFolder(tmp_path, "d").next_start() < StateFolder(tmp_path, "d").next_start()
