"""The rollouts of a fleet in one SQLite file, which several operators can share.

Guarantee: a change of a rollout names the revision that it was decided on, and is refused when another operator was
faster (compare and set), so that two of them never undo each other's order unseen. Everything that is done to a
rollout or a device stands in `history`: who, what, when.
"""

import getpass
import json
import sqlite3
import time
from collections.abc import Iterator
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
  primary key (rollout, device));
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
        expires: of the documents, seconds since 1970.
        window: of maintenance.
        undoes: the rollout that this one takes back.
    """

    model: str
    version: str
    digest: str
    size: int
    device_class: str | None = None
    files: dict[str, str] = {}
    max_failures: str = "0"
    soak: float = 30.0
    expires: int | None = None
    window: tuple[str, str] | None = None
    undoes: str | None = None


class DeviceRow(msgspec.Struct, kw_only=True):
    """One device of a rollout.

    Attributes:
        device: its name.
        wave: its number, from 1.
        serial: of the document that was published for it; 0 before.
        published: when.
        state: of its last report; empty without.
        why: of that.
        before: the bundle that it ran before, as in `models list --json`.
        updated: when its state last changed.
    """

    device: str
    wave: int
    serial: int = 0
    published: float = 0.0
    state: str = ""
    why: str = ""
    before: dict[str, Any] | None = None
    updated: float = 0.0


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

    def create(self, rollout: str, plan: RolloutPlan, devices: list[DeviceRow]) -> RolloutRow:
        """Begin a rollout."""
        text = msgspec.json.encode(plan).decode()
        with self._open() as database:
            database.execute("insert into rollouts values (?, 1, 'running', 0, ?, ?)", (rollout, text, time.time()))
            database.executemany(
                "insert into devices (rollout, device, wave, before) values (?, ?, ?, ?)",
                [(rollout, each.device, each.wave, json.dumps(each.before)) for each in devices],
            )
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

    def under_way(self) -> list[RolloutRow]:
        """The rollouts that run or are paused."""
        with self._open() as database:
            found = database.execute("select id from rollouts where state in ('running', 'paused')").fetchall()
        return [self.read(each[0]) for each in found]

    def devices(self, rollout: str) -> list[DeviceRow]:
        """Its devices, in order."""
        with self._open() as database:
            rows = database.execute(
                "select device, wave, serial, published, state, why, before, updated from devices"
                " where rollout = ? order by wave, rowid",
                (rollout,),
            ).fetchall()
        return [
            DeviceRow(
                device=row[0], wave=row[1], serial=row[2], published=row[3], state=row[4], why=row[5],
                before=json.loads(row[6]) if row[6] else None, updated=row[7],
            )
            for row in rows
        ]  # fmt: skip

    def change(self, row: RolloutRow, state: RolloutState, what: str) -> RolloutRow:
        """Give a rollout another state, if it is still as it was read.

        Raises:
            CommandError: another operator changed it meanwhile.
        """
        with self._open() as database:
            done = database.execute(
                "update rollouts set state = ?, revision = revision + 1 where id = ? and revision = ?",
                (state, row.id, row.revision),
            )
            if done.rowcount != 1:
                raise CommandError(
                    f"rollout {row.id}: expected revision {row.revision}, found a newer one: another operator has "
                    "changed it; look at `rollout status` and try again"
                )
            _note(database, row.id, "", what)
        return self.read(row.id)

    def next_serial(self) -> int:
        """A number above every one that was given: the Unix time, or one more than the last."""
        with self._open() as database:
            last: int = database.execute("select coalesce(max(serial), 0) from rollouts").fetchone()[0]
            serial = max(int(time.time()), last + 1)
            database.execute(
                "update rollouts set serial = ? where id = (select id from rollouts order by began desc limit 1)",
                (serial,),
            )
        return serial

    def published(self, rollout: str, device: str, serial: int) -> None:
        """A document was published for a device."""
        with self._open() as database:
            database.execute(
                "update devices set serial = ?, published = ? where rollout = ? and device = ?",
                (serial, time.time(), rollout, device),
            )
            _note(database, rollout, device, f"published, serial {serial}")

    def reported(self, rollout: str, device: str, state: str, why: str) -> None:
        """A device has reported."""
        with self._open() as database:
            done = database.execute(
                "update devices set state = ?, why = ?, updated = ? where rollout = ? and device = ?"
                " and (state != ? or why != ?)",
                (state, why, time.time(), rollout, device, state, why),
            )
            if done.rowcount:
                _note(database, rollout, device, f"{state}{f': {why}' if why else ''}")

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


def _note(database: sqlite3.Connection, rollout: str, device: str, what: str) -> None:
    database.execute("insert into history values (?, ?, ?, ?, ?)", (time.time(), _who(), rollout, device, what))


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
