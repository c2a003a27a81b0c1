"""The rollouts of a fleet in one SQLite file, which several operators can share.

Guarantee: a change of a rollout names the revision that it was decided on, and is refused when another operator was
faster (compare and set), so that two of them never undo each other's order unseen. No device is under way in two
rollouts. A document is noted (`claim`) before it is published and again once the broker has acknowledged it, so that a
process which is killed in between leaves a row that `rollout resume` compares with the broker. Everything that is done
to a rollout or a device stands in `history`: who, what, when.
"""

import getpass
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_runtime.errors import CommandError

RolloutState = Literal["running", "paused", "aborted", "stopped", "finished", "undone"]

_TABLES = """
create table if not exists rollouts (
  id text primary key, revision integer not null, state text not null, serial integer not null,
  plan text not null, began real not null);
create table if not exists devices (
  rollout text not null references rollouts(id), device text not null, wave integer not null,
  serial integer not null default 0, published real not null default 0, state text not null default '',
  why text not null default '', before text not null default '', updated real not null default 0,
  online integer not null default 1, primary key (rollout, device));
create table if not exists history (
  at real not null, who text not null, rollout text not null, device text not null default '', what text not null);
"""


class RolloutPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout brings, and how it goes on.

    Attributes:
        model: the model's name.
        version: of the bundle.
        digest: its SHA-256, in hex.
        size: in bytes.
        device_class: what it was made for.
        files: what stands beside the bundle, by suffix.
        max_failures: `N` or `N%`.
        soak: seconds on probation after which a device of a wave counts as good.
        not_before: when devices may begin, seconds since 1970.
        expires: of the documents, seconds since 1970.
        window: of maintenance.
        undoes: the rollout that this one takes back.
        canaries: how many devices have to prove the bundle before the rest gets it.
        url: where devices may fetch the file by HTTP.
    """

    model: str
    version: str
    digest: str
    size: int
    device_class: str | None = None
    files: dict[str, str] = {}
    max_failures: str = "0"
    soak: float = 30.0
    not_before: int | None = None
    expires: int | None = None
    window: tuple[str, str] | None = None
    undoes: str | None = None
    canaries: int = 0
    url: str | None = None


# States that the host gives to devices which get no document.
LEFT_OUT: frozenset[str] = frozenset({"refused", "pinned"})


class DeviceRow(msgspec.Struct, kw_only=True):
    """One device of a rollout.

    Attributes:
        device: its name.
        wave: its number, from 1.
        serial: of the document that was published for it; 0 before.
        published: when the broker acknowledged it; 0 before.
        state: of its last report; empty without. `refused` or `pinned` for one that gets no document.
        why: of that.
        before: the bundle that it ran before, as in `models list --json`.
        updated: when its state last changed.
        is_online: it answered when the rollout began.
    """

    device: str
    wave: int
    serial: int = 0
    published: float = 0.0
    state: str = ""
    why: str = ""
    before: dict[str, Any] | None = None
    updated: float = 0.0
    is_online: bool = True

    @property
    def is_waiting(self) -> bool:
        """It is still to get a document."""
        return not self.serial and not self.state


class RolloutRow(msgspec.Struct, kw_only=True):
    """One rollout, as it was read; `revision` is what a change of it must name."""

    id: str
    revision: int
    state: RolloutState
    plan: RolloutPlan
    began: float


class RolloutFile:
    """The file.

    Args:
        path: made when it is not there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as database:
            database.executescript(_TABLES)
            if "online" not in {
                row[1] for row in database.execute("pragma table_info(devices)")
            }:  # of the first release
                database.execute("alter table devices add column online integer not null default 1")

    def create(self, rollout: str, plan: RolloutPlan, devices: list[DeviceRow]) -> RolloutRow:
        """Begin a rollout.

        Raises:
            CommandError: another one that runs or is paused has some of the devices.
        """
        text = msgspec.json.encode(plan).decode()
        with self._open() as database:
            database.execute("insert into rollouts values (?, 1, 'running', 0, ?, ?)", (rollout, text, time.time()))
            database.executemany(
                "insert into devices (rollout, device, wave, state, why, before, online) values (?, ?, ?, ?, ?, ?, ?)",
                [
                    (rollout, each.device, each.wave, each.state, each.why, json.dumps(each.before), each.is_online)
                    for each in devices
                ],
            )
            _require_no_other(database, rollout)  # in this transaction: another operator may begin at the same moment
            _note(database, rollout, "", f"started: {plan.model} {plan.version} ({plan.digest[:12]})")
        return self.read(rollout)

    def read(self, rollout: str | None = None) -> RolloutRow:
        """A rollout, by default the newest.

        Raises:
            CommandError: there is none.
        """
        columns = "select id, revision, state, plan, began from rollouts"
        with self._open() as database:
            if rollout is None:
                row = database.execute(columns + " order by began desc limit 1").fetchone()
            else:
                row = database.execute(columns + " where id = ?", (rollout,)).fetchone()
        if row is None:
            named = "" if rollout is None else f" {rollout}"
            raise CommandError(f"{self.path}: expected a rollout{named}, found none: start one")
        plan = msgspec.json.decode(row[3], type=RolloutPlan)
        return RolloutRow(id=row[0], revision=row[1], state=row[2], plan=plan, began=row[4])

    def ids(self) -> set[str]:
        """Of every rollout."""
        with self._open() as database:
            return {row[0] for row in database.execute("select id from rollouts")}

    def devices(self, rollout: str) -> list[DeviceRow]:
        """Its devices, in order."""
        with self._open() as database:
            rows = database.execute(
                "select device, wave, serial, published, state, why, before, updated, online from devices"
                " where rollout = ? order by wave, rowid",
                (rollout,),
            ).fetchall()
        return [
            DeviceRow(
                device=row[0], wave=row[1], serial=row[2], published=row[3], state=row[4], why=row[5],
                before=json.loads(row[6]) if row[6] else None, updated=row[7], is_online=bool(row[8]),
            )
            for row in rows
        ]  # fmt: skip

    def change(self, row: RolloutRow, state: RolloutState, what: str, *, plan: RolloutPlan | None = None) -> RolloutRow:
        """Give a rollout another state, and another plan where one is given, if it is still as it was read.

        Raises:
            CommandError: another operator changed it meanwhile.
        """
        with self._open() as database:
            done = database.execute(
                "update rollouts set state = ?, plan = ?, revision = revision + 1 where id = ? and revision = ?",
                (state, msgspec.json.encode(plan or row.plan).decode(), row.id, row.revision),
            )
            if done.rowcount != 1:
                raise CommandError(
                    f"rollout {row.id}: expected revision {row.revision}, found a newer one: another operator has "
                    "changed it; look at `rollout status` and try again"
                )
            _note(database, row.id, "", what)
        return self.read(row.id)

    def next_serial(self, above: int = 0) -> int:
        """A number above every one that was given, and above `above`: the Unix time, or one more than the last."""
        with self._open() as database:
            database.execute("update rollouts set serial = serial")  # takes the lock before the last one is read
            last: int = database.execute("select coalesce(max(serial), 0) from rollouts").fetchone()[0]
            serial = max(int(time.time()), last + 1, above + 1)
            database.execute(
                "update rollouts set serial = ? where id = (select id from rollouts order by began desc limit 1)",
                (serial,),
            )
        return serial

    def claim(self, rollout: str, devices: Sequence[DeviceRow], serial: int) -> list[DeviceRow]:
        """Note that documents are about to be published; returns those that no other process has claimed."""
        with self._open() as database:
            return [
                each
                for each in devices
                if database.execute(
                    "update devices set serial = ?, published = 0 where rollout = ? and device = ? and serial = 0",
                    (serial, rollout, each.device),
                ).rowcount
            ]

    def release(self, rollout: str, devices: Sequence[str], serial: int, why: str = "") -> None:
        """Their documents are not at the broker: they wait for one again."""
        with self._open() as database:
            for device in devices:
                database.execute(
                    "update devices set serial = 0, published = 0, state = '', why = ''"
                    " where rollout = ? and device = ? and serial = ?",
                    (rollout, device, serial),
                )
                if why:
                    _note(database, rollout, device, why)

    def published(self, rollout: str, devices: str | Sequence[str], serial: int) -> None:
        """The broker has acknowledged the documents of these devices."""
        now = time.time()
        with self._open() as database:
            for device in [devices] if isinstance(devices, str) else devices:
                database.execute(
                    "update devices set serial = ?, published = ? where rollout = ? and device = ?",
                    (serial, now, rollout, device),
                )
                _note(database, rollout, device, f"published, serial {serial}")

    def reported(self, rollout: str, device: str, state: str, why: str) -> None:
        """A device has reported."""
        self.reported_all(rollout, {device: (state, why)})

    def reported_all(self, rollout: str, reports: Mapping[str, tuple[str, str]]) -> None:
        """Devices have reported a state, and why."""
        with self._open() as database:
            for device, (state, why) in reports.items():
                done = database.execute(
                    "update devices set state = ?, why = ?, updated = ? where rollout = ? and device = ?"
                    " and (state != ? or why != ?)",
                    (state, why, time.time(), rollout, device, state, why),
                )
                if done.rowcount:
                    _note(database, rollout, device, f"{state}{f': {why}' if why else ''}")

    def move(self, rollout: str, devices: Sequence[str], wave: int, what: str) -> None:
        """Have devices take part in another wave."""
        with self._open() as database:
            for device in devices:
                database.execute(
                    "update devices set wave = ? where rollout = ? and device = ?", (wave, rollout, device)
                )
                _note(database, rollout, device, what)

    def ran_before(self, rollout: str, device: str, before: dict[str, Any]) -> None:
        """What a device ran before, as it reported itself; it was not known when the rollout began."""
        with self._open() as database:
            database.execute(
                "update devices set before = ? where rollout = ? and device = ?", (json.dumps(before), rollout, device)
            )

    def history(self, rollout: str) -> list[dict[str, Any]]:
        """Who did what when, oldest first."""
        with self._open() as database:
            rows = database.execute(
                "select at, who, device, what from history where rollout = ? order by at, rowid", (rollout,)
            ).fetchall()
        return [{"at": row[0], "who": row[1], "device": row[2] or None, "what": row[3]} for row in rows]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self.path, timeout=20.0, isolation_level="IMMEDIATE")
            try:
                with database:
                    yield database
            finally:
                database.close()
        except sqlite3.Error as error:
            raise CommandError(f"{self.path}: the file of rollouts cannot be used: {error}") from error


def _require_no_other(database: sqlite3.Connection, rollout: str) -> None:
    found = database.execute(
        "select r.id, r.state, r.plan, count(*) from rollouts r join devices d on d.rollout = r.id"
        " where r.state in ('running', 'paused') and r.id != ?"
        " and d.state not in ('refused', 'pinned', 'confirmed', 'failed', 'probation')"
        " and d.device in (select device from devices where rollout = ? and state not in ('refused', 'pinned'))"
        " group by r.id order by r.began desc limit 1",
        (rollout, rollout),
    ).fetchone()
    if found is not None:
        plan = msgspec.json.decode(found[2], type=RolloutPlan)
        raise CommandError(
            f"rollout {found[0]} of {plan.model} {plan.version} is {found[1]} on {found[3]} of these devices: "
            f"`rollout abort {found[0]}` first, or leave them out"
        )


def _note(database: sqlite3.Connection, rollout: str, device: str, what: str) -> None:
    database.execute("insert into history values (?, ?, ?, ?, ?)", (time.time(), _who(), rollout, device, what))


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
