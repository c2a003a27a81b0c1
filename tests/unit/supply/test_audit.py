"""The audit of locked packages: what it counts, what it passes over, and until when."""

import datetime as dt
import tomllib
from typing import Any

import pytest

from tests.unit.supply.test_locks import ROOT, script

audit = script("audit")
TODAY = dt.date(2026, 11, 1)
FOUND = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}


def report(*vulns: dict[str, Any]) -> dict[str, Any]:
    """What pip-audit says of one package."""
    return {"dependencies": [{"name": "x", "version": "1.0", "vulns": list(vulns)}]}


def ignored(name: str, until: dt.date) -> list[dict[str, Any]]:
    """An entry of audit.toml."""
    return [{"id": name, "until": until, "reason": "not imported"}]


def test_an_advisory_is_a_finding() -> None:
    """It is named with the release that mends it."""
    assert list(audit.judge(report(FOUND), [], TODAY)) == ["x 1.0: PYSEC-1, fixed in 2.0"]
    assert list(audit.judge(report(), [], TODAY)) == []


@pytest.mark.parametrize("name", ["PYSEC-1", "CVE-1"])
def test_an_ignored_advisory_counts_again_after_its_day(name: str) -> None:
    """On the day itself it is still ignored, by its name or by another name of it; on the next it is not."""
    assert list(audit.judge(report(FOUND), ignored(name, TODAY), TODAY)) == []
    (line,) = audit.judge(report(FOUND), ignored(name, TODAY - dt.timedelta(days=1)), TODAY)
    assert "ignored until 2026-10-31, which is over" in line


def test_an_entry_that_matches_nothing_is_named() -> None:
    """A list of exceptions does not grow old unseen."""
    assert list(audit.judge(report(), ignored("PYSEC-9", TODAY), TODAY)) == [
        "audit.toml: PYSEC-9 matches nothing: remove the entry"
    ]


def test_a_package_that_was_not_audited_is_not_clean() -> None:
    """Where the database does not answer, the package is named."""
    (line,) = audit.judge({"dependencies": [{"name": "x", "skip_reason": "no answer"}]}, [], TODAY)
    assert line == "x: not audited: no answer"


def test_every_exception_has_a_day_and_a_reason() -> None:
    """The file itself is in order."""
    for each in tomllib.loads((ROOT / "tests" / "audit.toml").read_text())["ignored"]:
        assert set(each) == {"id", "until", "reason"}
        assert isinstance(each["until"], dt.date)
        assert each["reason"]
