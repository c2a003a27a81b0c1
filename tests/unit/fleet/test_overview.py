"""What the table of devices says of one that answered, in part or not at all."""

import json

from edge_runtime.fleet.overview import HEADER, MARK, OverviewRow, cells, fill_from_answer
from edge_runtime.fleet.ssh import RemoteResult


def answer(*parts: str, err: str = "") -> RemoteResult:
    """What a device prints: one part after the other."""
    return RemoteResult(0, "greeting\n" + "".join(f"{MARK}\n{part}\n" for part in parts), err)


def fill(row: OverviewRow, found: RemoteResult) -> None:
    """As the look over ssh does."""
    fill_from_answer(row, found.out.split(MARK)[1:], found.reason)


def output_of(row: OverviewRow, now: float = 1000.0) -> list[dict[str, str]]:
    """The lines of the table, by column; empty cells are left out."""
    return [{key: cell for key, cell in zip(HEADER, line, strict=True) if cell} for line in cells(row, now)]


def test_a_device_that_answers_everything_fills_its_row() -> None:
    """Uptime, temperature, service, queue, last prediction, and a line for each model that serves."""
    models = [
        {"name": "a", "version": "1.1.0", "digest": "d1", "state": "active"},
        {"name": "a", "version": "1.0.0", "digest": "d0", "state": "previous"},
        {"name": "b", "version": "2.0.0", "digest": "d2", "state": "probation"},
    ]
    status = [{"queued": 3, "last_prediction": 940.0}, {"queued": 4, "last_prediction": 900}]
    row = OverviewRow(name="d0", reachable=True)
    fill(row, answer("7300.5 1.0", "48312", "active", "edge-runtime 1.2.3", json.dumps(status), json.dumps(models)))
    common = {"DEVICE": "d0", "REACHABLE": "yes", "SERVICE": "active", "UPTIME": "2 h 1 min", "LAST": "1 min ago"}
    common |= {"QUEUE": "7", "TEMP": "48 C"}
    assert output_of(row) == [
        {**common, "MODEL": "a", "VERSION": "1.1.0", "STATE": "active"},
        {**common, "MODEL": "b", "VERSION": "2.0.0", "STATE": "probation"},
    ]
    assert row.runtime == "1.2.3"


def test_a_device_that_went_back_by_itself_says_why() -> None:
    """The bundle that failed is named with its reason, beside the one that serves."""
    models = [
        {"name": "a", "version": "1.0.0", "digest": "d0", "state": "active"},
        {"name": "a", "version": "1.1.0", "digest": "d1", "state": "rejected", "why": "NaN in 3 of 100 windows"},
    ]
    row = OverviewRow(name="d0", reachable=True)
    fill(row, answer("", "", "active", "edge-runtime 1.2.3", "", json.dumps(models)))
    assert output_of(row)[0]["WHY"] == "went back from 1.1.0: NaN in 3 of 100 windows"


def test_a_device_without_runtime_or_with_a_broken_store_has_a_row() -> None:
    """Each part may fail by itself; the reason stands in the last column."""
    row = OverviewRow(name="d0", reachable=True)
    fill(row, answer("10 1", "", "inactive", "", "", ""))
    assert output_of(row)[0]["WHY"] == "the runtime is not installed: provision the device first"
    row = OverviewRow(name="d0", reachable=True)
    fill(row, answer("10 1", "", "active", "edge-runtime 1", "no json", "", err="x\n/var: cannot be read: why\n"))
    assert output_of(row)[0]["WHY"] == "/var: cannot be read: why"
    row = OverviewRow(name="d0", reachable=True)
    fill(row, RemoteResult(1, "", "sudo: a password is required\n"))
    assert output_of(row)[0]["WHY"] == "sudo: a password is required"
