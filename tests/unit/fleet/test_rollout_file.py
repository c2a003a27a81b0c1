"""The file of rollouts that operators share, and what is decided from it."""

import hashlib
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import msgspec
import pytest

from edge_runtime.errors import CommandError
from edge_runtime.fleet import conductor
from edge_runtime.fleet import depot as depot_module
from edge_runtime.fleet.broker_line import CONNECTED, Heard, Login
from edge_runtime.fleet.bundle_files import kept_by_pin, pinned
from edge_runtime.fleet.conductor import Conductor, outcomes
from edge_runtime.fleet.depot import Depot
from edge_runtime.fleet.hung import HungDevices
from edge_runtime.fleet.rollout_file import DeviceRow, RolloutFile, RolloutPlan, RolloutState
from edge_runtime.fleet.wave_progress import WaveProgress
from edge_runtime.store.desired_document import check_window, is_open
from tests.support.builders import signer
from tests.unit.fleet.test_rollout import targets

PLAN = RolloutPlan(model="comfort", version="1.1.0", digest="d" * 64, size=10)


@pytest.fixture
def file(tmp_path: Path) -> RolloutFile:
    """A rollout `r1` over three devices in two waves."""
    found = RolloutFile(tmp_path / "rollouts.db")
    found.create("r1", PLAN, [DeviceRow(device=name, wave=wave) for name, wave in (("a", 1), ("b", 2), ("c", 2))])
    return found


def test_two_operators_do_not_overwrite_each_other(file: RolloutFile) -> None:
    """A change names the revision that it was decided on; the slower operator is refused in words."""
    mine, theirs = file.read("r1"), RolloutFile(file.path).read()
    file.change(theirs, "paused", "paused")
    with pytest.raises(CommandError, match="another operator has changed it"):
        file.change(mine, "aborted", "aborted")
    assert file.read("r1").state == "paused"
    file.change(file.read("r1"), "aborted", "aborted")
    assert [each["what"] for each in file.history("r1")] == [
        "started: comfort 1.1.0 (dddddddddddd)",
        "paused",
        "aborted",
    ]


def test_serials_only_rise(file: RolloutFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine whose clock went back: a device would take no older one."""
    first = file.next_serial()
    monkeypatch.setattr("edge_runtime.fleet.rollout_file.time.time", lambda: 1000.0)
    file.create("r2", PLAN, [])
    assert [file.next_serial(), file.next_serial()] == [first + 1, first + 2]


def test_operators_at_the_same_time_get_serials_of_their_own(file: RolloutFile) -> None:
    """The last number is read and the next one written in one transaction."""

    def ask(_: int) -> list[int]:
        mine = RolloutFile(file.path)
        return [mine.next_serial() for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        found = [serial for serials in pool.map(ask, range(4)) for serial in serials]
    assert len(set(found)) == 100


def test_what_devices_report_is_kept_once_and_in_order(file: RolloutFile) -> None:
    """A report that says nothing new makes no line of history."""
    file.published("r1", "a", 7)
    for state in ("receiving", "receiving", "probation", "confirmed"):
        file.reported("r1", "a", state, "")
    row = file.devices("r1")[0]
    assert (row.device, row.serial, row.state) == ("a", 7, "confirmed")
    found = [each["what"] for each in file.history("r1") if each["device"] == "a"]
    assert found == ["published, serial 7", "receiving", "probation", "confirmed"]


def test_every_device_has_a_result(file: RolloutFile) -> None:
    """Those that have no document are not tried, those that do not report are away, and the rest say how they are."""
    file.published("r1", "a", 7)
    file.published("r1", "b", 7)
    file.reported("r1", "a", "failed", "answers NaN")
    found = {each.device: (each.result, each.text) for each in outcomes(file.read("r1"), file.devices("r1"))}
    assert found == {
        "a": ("failed", "answers NaN"),
        "b": ("away", "no report yet: it follows when it comes back"),
        "c": ("not tried", "the rollout is running"),
    }


@pytest.mark.parametrize("state", ["paused", "aborted"])
def test_a_pause_or_abort_holds_in_the_middle_of_a_wave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: RolloutState
) -> None:
    """The devices of a wave that have no document yet get none, once another operator has changed the rollout."""
    file = RolloutFile(tmp_path / "rollouts.db")
    file.create("r1", PLAN, [DeviceRow(device=name, wave=1) for name in "abc"])
    topics: list[str] = []

    class Line:
        is_settled = True
        connections = 1

        def __init__(self, *_: object, qos: int) -> None:
            assert qos == 0
            self._heard = [Heard(CONNECTED, b"")]

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing is open."""

        def hear(self, _: float) -> Heard | None:
            return self._heard.pop() if self._heard else None

        def publish(self, topic: str, _: bytes, *, retain: bool) -> bool:
            assert retain
            topics.append(topic)
            if len(topics) == 2:
                other = RolloutFile(file.path)
                other.change(other.read("r1"), state, state)
            return True

    monkeypatch.setattr(conductor, "BrokerLine", Line)
    moving = Conductor(file, Login(url="mqtt://127.0.0.1:1"), signer(tmp_path / "keys").key, lambda _: None)
    moving.run("r1", until_done=True)
    assert topics == ["a/desired", "b/desired"]
    assert [bool(each.serial) for each in file.devices("r1")] == [True, True, False]
    assert outcomes(file.read("r1"), file.devices("r1"))[2].text == f"the rollout is {state}"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """The path is wrong: one line, and nothing is overwritten."""
    path = tmp_path / "rollouts.db"
    path.write_bytes(b"x" * 5000)
    with pytest.raises(CommandError, match=r"rollouts\.db: the file of rollouts cannot be used"):
        RolloutFile(path)
    assert path.read_bytes() == b"x" * 5000


@pytest.mark.parametrize(
    ("state", "why", "age", "past"),
    [
        ("confirmed", "", 0, True),
        ("failed", "", 0, True),
        ("pending", "waiting for its window", 0, True),
        ("pending", "", 0, False),
        ("pending", "", 60, True),
        ("probation", "", 5, False),
        ("probation", "", 60, True),
        ("receiving", "", 5, False),
        ("receiving", "", 600, True),
        ("refused", "", 0, True),
        ("", "", 5, False),
        ("", "", 60, True),
    ],
)
def test_a_wave_waits_for_the_healthy_and_for_none_that_is_away(state: str, why: str, age: float, past: bool) -> None:
    """The next wave waits for devices that move or are fresh on probation, and not for silent ones.

    A device that has only reported `pending` has not looked at its store yet: it proves nothing.
    """
    then = time.time() - age
    row = DeviceRow(device="a", wave=1, serial=1, published=then, state=state, why=why, updated=then)
    assert WaveProgress(by_clock=True).is_past(row, 30.0) == past


@pytest.mark.parametrize(
    ("window", "minute", "expected"),
    [
        (None, 0, True),
        (("01:00", "05:00"), 60, True),
        (("01:00", "05:00"), 300, False),
        (("22:00", "05:00"), 23 * 60, True),
        (("22:00", "05:00"), 4 * 60, True),
        (("22:00", "05:00"), 12 * 60, False),
    ],
)
def test_a_window_of_maintenance_may_pass_midnight(window: tuple[str, str] | None, minute: int, expected: bool) -> None:
    """From is in it, to is not."""
    assert is_open(window, minute) == expected


@pytest.mark.parametrize("text", ["", "1:00", "24:00", "12:60", "ab:cd", "01:00:00"])
def test_a_window_that_is_none_is_refused(text: str) -> None:
    """Only HH:MM is a time of day."""
    with pytest.raises(ValueError, match=r"expected HH:MM|invalid literal"):
        check_window(("01:00", text))


def test_a_depot_sends_only_bytes_of_its_files(tmp_path: Path) -> None:
    """Another digest, another transfer, and places outside of the file get no answer."""
    (tmp_path / "a.onnx").write_bytes(b"0123456789")
    depot = Depot([tmp_path])
    (digest,) = depot.files
    want = {"transfer": "depot1", "sha256": digest, "offset": 2, "bytes": 3}
    assert depot.chunk(want) == b"234"
    for changes in (
        {"sha256": "0" * 64}, {"transfer": "a1b2"}, {"offset": 9}, {"offset": -1}, {"bytes": 0}, {"bytes": 2**40},
        {"offset": "0"}, {"sha256": None}, {"transfer": "depot#"}, {"transfer": "depot/x"}, {"transfer": "depot\n"},
    ):  # fmt: skip
        assert depot.chunk({**want, **changes}) is None
    assert depot.unknown.total() == 1
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CommandError, match="expected bundles to serve"):
        Depot([tmp_path / "nothing"])


def test_a_depot_goes_on_after_what_is_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may publish there can ask in any words, also in such that nest deeper than a decoder goes."""
    (tmp_path / "a.onnx").write_bytes(b"0123456789")
    depot = Depot([tmp_path])
    (digest,) = depot.files
    want = msgspec.json.encode({"transfer": "depot1", "sha256": digest, "offset": 2, "bytes": 3})
    heard = [Heard("room/ota/want", each) for each in (b"\xff", b"[" * 60_000, b'{"x":' + b"[" * 60_000, want)]
    sent: list[tuple[str, bytes]] = []

    class Line:
        def __init__(self, *_: object) -> None:
            """As `BrokerLine`."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            """As `BrokerLine`."""

        def hear(self, _seconds: float) -> Heard:
            return heard.pop(0)

        def publish(self, topic: str, payload: bytes, **_: object) -> bool:
            sent.append((topic, payload))
            return True

    monkeypatch.setattr(depot_module, "BrokerLine", Line)
    depot.serve(Login(url="mqtt://127.0.0.1:1"), lambda _: None, ended=lambda: not heard)
    assert sent == [("room/ota/chunk/depot1/2", b"234")]


def test_a_depot_finds_what_is_put_there_later_and_sends_nothing_of_a_file_that_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is started once; the bundle of next week is put into its folder."""
    monkeypatch.setattr(depot_module, "LOOK_AGAIN_S", 0.0)
    (tmp_path / "a.onnx").write_bytes(b"0123456789")
    depot = Depot([tmp_path])
    (first,) = depot.files
    later = tmp_path / "b.onnx"
    later.write_bytes(b"abcdefgh")
    want = {"transfer": "depot1", "sha256": hashlib.sha256(b"abcdefgh").hexdigest(), "offset": 0, "bytes": 4}
    assert depot.chunk(want) == b"abcd"
    later.write_bytes(b"ABCDEFGH!")
    assert depot.chunk(want | {"offset": 4}) is None
    assert depot.chunk(want | {"sha256": hashlib.sha256(b"ABCDEFGH!").hexdigest()}) == b"ABCD"
    assert depot.chunk(want | {"sha256": first}) == b"0123"
    (tmp_path / "a.onnx").unlink()
    assert depot.chunk(want | {"sha256": first}) is None


def test_of_two_rollouts_over_the_same_devices_the_second_is_refused(file: RolloutFile) -> None:
    """In the same transaction, so that two operators who begin at the same moment do not both get through."""
    with pytest.raises(
        CommandError, match=r"rollout r1 of comfort 1\.1\.0 is running on 2 of these devices: .*abort r1"
    ):
        file.create("r2", PLAN, [DeviceRow(device=name, wave=1) for name in ("b", "c", "d")])
    assert file.ids() == {"r1"}
    left_out = DeviceRow(device="b", wave=0, state="pinned", why="the inventory pins it to comfort 1.0.0")
    file.create("r3", PLAN, [left_out, DeviceRow(device="d", wave=1)])
    assert file.ids() == {"r1", "r3"}
    file.reported_all("r1", {"a": ("probation", ""), "b": ("confirmed", ""), "c": ("failed", "answers NaN")})
    file.create("r4", PLAN, [DeviceRow(device=name, wave=1) for name in "abc"])
    assert file.ids() == {"r1", "r3", "r4"}, "devices that have the bundle of a rollout are under way no more"


def test_a_document_is_claimed_by_one_process(file: RolloutFile) -> None:
    """Two commands move the same rollout: each device gets its document from one of them."""
    mine, theirs = file.devices("r1"), RolloutFile(file.path).devices("r1")
    assert [each.device for each in file.claim("r1", mine[:2], 7)] == ["a", "b"]
    assert [each.device for each in file.claim("r1", theirs, 8)] == ["c"]
    assert [each.serial for each in file.devices("r1")] == [7, 7, 8]
    file.release("r1", ["a", "c"], 7)
    assert [each.serial for each in file.devices("r1")] == [0, 7, 8]


def test_a_file_of_the_first_release_is_read_on(tmp_path: Path) -> None:
    """Its devices have no word on whether they were online: they count as such."""
    path = tmp_path / "rollouts.db"
    with sqlite3.connect(path) as database:
        database.executescript(
            "create table rollouts (id text primary key, revision integer not null, state text not null,"
            " serial integer not null, plan text not null, began real not null);"
            "create table devices (rollout text not null references rollouts(id), device text not null,"
            " wave integer not null, serial integer not null default 0, published real not null default 0,"
            " state text not null default '', why text not null default '', before text not null default '',"
            " updated real not null default 0, primary key (rollout, device));"
            "create table history (at real not null, who text not null, rollout text not null,"
            " device text not null default '', what text not null);"
            "insert into rollouts values ('r0', 1, 'running', 5,"
            """ '{"model": "m", "version": "1.0.0", "digest": "d", "size": 1}', 1.0);"""
            "insert into devices (rollout, device, wave, serial, published) values ('r0', 'a', 1, 5, 1.0);"
        )
    database.close()
    file = RolloutFile(path)
    assert [(each.device, each.serial, each.is_online) for each in file.devices("r0")] == [("a", 5, True)]
    assert file.read("r0").plan.canaries == 0


def test_devices_that_hung_go_last_until_they_succeed(tmp_path: Path) -> None:
    """Also in the next command; the order is otherwise that of the inventory, and no file is made for nothing."""
    hung = HungDevices(tmp_path)
    names = ["a", "b", "c", "d"]
    devices = targets(*names)
    hung.note([], names)
    assert not list(tmp_path.iterdir())
    hung.note([names[0], names[2]], [names[1]])
    assert [each.name for each in HungDevices(tmp_path).last(devices)] == [names[1], names[3], names[0], names[2]]
    hung.note([names[3]], [names[0]])
    assert HungDevices(tmp_path).names() == {names[2], names[3]}
    (tmp_path / "hung-devices.json").write_text("not ours")
    assert [each.name for each in HungDevices(tmp_path).last(devices)] == names


def test_a_pin_keeps_one_model_at_one_version() -> None:
    """Of the pinned model no other version is brought; other models are free, and so is the version itself."""
    device = msgspec.structs.replace(targets("a")[0], pins=("comfort 1.0.0",))
    assert pinned(device, "comfort", "1.1.0") == "the inventory pins it to comfort 1.0.0"
    assert pinned(device, "comfort", "1.0.0") is None
    assert pinned(device, "vibration", "1.1.0") is None
    assert kept_by_pin(device, {"name": "comfort", "version": "1.0.0"}) == "the inventory pins it to comfort 1.0.0"
    assert kept_by_pin(device, {"name": "comfort", "version": "1.1.0"}) is None
