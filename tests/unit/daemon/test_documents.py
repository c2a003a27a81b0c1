"""The health document: what stands at its top, and what for each source."""

from collections import defaultdict
from types import SimpleNamespace
from typing import cast

from edge_runtime.daemon.documents import Described, health_document
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.system.counters import Counters
from tests.support.stepped import SteppedLoop


def _daemon(**counters: Counters) -> Described:
    """A daemon with one source, `s`, and no model; further counters are of parts that are gone."""
    every: defaultdict[str, Counters] = defaultdict(
        Counters, {name.replace("_", " "): c for name, c in counters.items()}
    )
    connection = SimpleNamespace(name="upstream", state="connected", connected=True, url="mqtt://b", is_fallback=False)
    return cast(
        "Described",
        SimpleNamespace(
            config=SimpleNamespace(device=SimpleNamespace(id="d")),
            started=0.0,
            start_number=7,
            counters=every,
            outbox=Outbox(SteppedLoop().as_loop, Counters(), store=None, commit_interval=1.0, max_memory_bytes=1 << 20),
            upstream_connection=connection,
            connections=[connection],
            pipelines=[],
            sources=[("s", SimpleNamespace(is_open=True, state="open"))],
            exchange=None,
            outputs=SimpleNamespace(document=dict),
            captures=None,
            accuracy={},
        ),
    )


def test_a_skipped_reading_is_counted_at_the_top_and_for_its_source() -> None:
    """By reason, in both places; a source that has skipped none says so too."""
    counters = Counters()
    counters.skipped["redelivered"] += 2
    counters.rejected["bad_time"] += 1
    counters.counts["readings"] += 5
    document = health_document(_daemon(source_s=counters))
    assert document["skipped"] == {"redelivered": 2}
    assert document["sources"]["s"]["skipped"] == {"redelivered": 2}
    assert document["sources"]["s"]["rejected"] == {"bad_time": 1}
    assert health_document(_daemon())["sources"]["s"]["skipped"] == {}


def test_counts_of_a_source_that_a_reload_took_out_stay_in_the_totals() -> None:
    """A total never becomes smaller while the process runs."""
    gone = Counters()
    gone.rejected["noise"] += 3
    gone.counts["readings"] += 4
    document = health_document(_daemon(source_gone=gone))
    assert document["rejected"] == {"noise": 3}
    assert document["readings"] == 4
    assert list(document["sources"]) == ["s"]
