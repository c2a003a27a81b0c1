"""A candidate beside the active model of a running daemon: it says how far the two agree, and does no harm."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import bad_models, builders
from tests.support.bad_models import BAD
from tests.support.stored import Rig
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.system, pytest.mark.slow]

MakeRig = Callable[[str], Rig]


def newest(rig: Rig) -> dict[str, Any]:
    """What was reported last of the shadow."""
    found = rig.client.on("edge/room/shadow/comfort")
    return dict(found[-1].document) if found else {}


def wait_for_comparison(rig: Rig, count: int = 1) -> dict[str, Any]:
    """The newest document once so many windows were compared."""
    rig.send_until(lambda: newest(rig).get("compared", 0) >= count, "a comparison", deadline=90.0)
    return newest(rig)


def beside(rig: Rig) -> dict[str, Any] | None:
    """The shadow as the retained list of models has it."""
    found = rig.client.on("edge/room/models")
    shadow: dict[str, Any] | None = found[-1].document[0].get("shadow") if found else None
    return shadow


def versions_of_answers(rig: Rig, first: int = 0) -> set[str]:
    """Every reading from `first` on is answered once; by which versions?"""
    rig.client.wait_for(rig.sent - first, "edge/room/comfort/", 60.0)
    rig.client.flush()
    documents = [each.document for each in rig.answers()]
    expected = [f"room/comfort/k{n % 3}/{n}" for n in range(first, rig.sent)]
    assert sorted(each["id"] for each in documents) == sorted(expected)
    return {each["version"] for each in documents}


def test_a_shadow_publishes_agreement_and_nothing_else(make_rig: MakeRig, tmp_path: Path) -> None:
    """It survives a restart, every prediction stays the active model's, and promoted it answers itself."""
    rig = make_rig("")
    rig.install(builders.classification(name="comfort", version="1.1.0", seed=9), shadow=True)
    document = wait_for_comparison(rig, 100)
    assert (document["active"]["version"], document["shadow"]["version"]) == ("1.0.0", "1.1.0")
    assert (document["model"], document["state"], document["why"]) == ("comfort", "running", None)
    assert sum(sum(row.values()) for row in document["labels"]["active_to_shadow"].values()) == document["compared"]
    assert document["difference"]["score"]["max"] > 0
    assert document["latency_ms"].keys() == {"active", "shadow"}
    assert rig.state()[:2] == ("1.0.0", "active")
    assert (beside(rig) or {})["version"] == "1.1.0"
    assert versions_of_answers(rig) == {"1.0.0"}  # all of them, so that none comes after the restart
    assert rig.daemon.stop() == 0

    rig.client.clear()
    first = rig.sent  # numbered on: the same reading again would be known again, over the stop too
    rig.daemon.start()
    rig.client.wait_for_text("edge/room/status", "online")
    rig.client.clear()
    wait_for_comparison(rig)
    assert versions_of_answers(rig, first) == {"1.0.0"}
    rig.store.promote("comfort")
    rig.send_until(lambda: rig.state()[0] == "1.1.0", "the promotion")
    assert rig.state()[1] == "probation"
    assert beside(rig) is None
    assert versions_of_answers(rig, first) == {"1.0.0", "1.1.0"}
    assert rig.daemon.stop() == 0


@pytest.mark.parametrize(
    ("draft", "reading", "words"),
    [
        (bad_models.hanging("1.1.0"), BAD, "hangs: no answer came in time"),
        (bad_models.hanging("1.1.0"), None, "crashed onnxruntime (SIGSEGV)"),
    ],
    ids=["hang", "crash"],
)
def test_a_shadow_that_dies_takes_nothing_with_it(
    make_rig: MakeRig, draft: builders.Draft, reading: float | None, words: str
) -> None:
    """Whether it hangs or crashes: readings are answered on, the reason is published, its digest is not taken again."""
    rig = make_rig("")
    rig.install(draft, shadow=True)
    wait_for_comparison(rig)
    if reading is None:
        os.kill(_shadow_of(rig.daemon.pid), signal.SIGSEGV)
    else:
        rig.send(1, reading)
    rig.send_until(lambda: (beside(rig) or {}).get("state") == "rejected", "the end of the shadow")
    assert words in str((beside(rig) or {})["why"])
    rig.client.wait_until(lambda _: newest(rig).get("state") == "ended", "its last words")
    assert words in newest(rig)["why"]
    wait_until(lambda: [each.state for each in rig.store.entries()] == ["active", "rejected"], "the store", 20.0)
    assert rig.state()[:2] == ("1.0.0", "active")
    assert versions_of_answers(rig) == {"1.0.0"}
    assert rig.daemon.stop() == 0


def _shadow_of(daemon: int) -> int:
    """The process id of the shadow of a daemon."""
    for task in Path(f"/proc/{daemon}/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"shadow_process" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("no shadow runs")


def test_a_slow_shadow_leaves_windows_out(make_rig: MakeRig) -> None:
    """It is asked less often, what it misses is counted, and the active model's answers do not wait for it."""
    rig = make_rig("")
    rig.install(bad_models.slow("1.1.0"), shadow=True)
    rig.send_until(lambda: newest(rig).get("left_out", 0) > 0, "windows that were left out", deadline=90.0)
    rig.client.wait_until(lambda _: newest(rig).get("compared", 0) > 0, "a comparison", 60.0)
    latency = newest(rig)["latency_ms"]
    assert latency["active"]["p50"] < latency["shadow"]["p50"]
    assert versions_of_answers(rig) == {"1.0.0"}
    assert rig.daemon.stop() == 0
