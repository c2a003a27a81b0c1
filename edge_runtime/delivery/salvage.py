"""Reads the remaining rows of a damaged outbox file, and renames the file.

Guarantee: every row that SQLite can reach from either end, and whose checksum holds, is taken over. Weak point: rows
between two bad pages are lost; their number is estimated from the row ids.
"""

import contextlib
import sqlite3
from pathlib import Path

from edge_runtime.delivery.rows import COLUMNS, COLUMNS_OF_1, HIGHEST_ID, NewRow, OutboxRow, read_row, text_of


def salvage(path: Path) -> tuple[list[NewRow], int]:
    """Every readable row of a damaged file, in order, and how many are missing between and after them.

    It is read from both ends, so that one bad page does not hide the rows behind it.

    Raises:
        sqlite3.Error: the disk cannot be read at present, which is no damage.
    """
    forward, backward = _read_rows(path, "ASC"), _read_rows(path, "DESC")
    by_id = {row.id: row for row in (*backward, *forward)}
    sound = [by_id[row_id] for row_id in sorted(by_id) if by_id[row_id].is_sound]
    numbers = [row_id for row_id in by_id if row_id < HIGHEST_ID]
    span = max(numbers) - min(numbers) + 1 if numbers else 0
    rows = [NewRow(row.stream, row.priority, row.made, row.topic, row.payload) for row in sound]
    return rows, max(0, span - len(sound))


def _read_rows(path: Path, direction: str) -> list[OutboxRow]:
    rows: list[OutboxRow] = []
    address = f"{path.absolute().as_uri()}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            connection.text_factory = text_of
            is_packed = any(name == "packing" for _, name, *_ in connection.execute("PRAGMA table_info(entry)"))
            columns = COLUMNS if is_packed else COLUMNS_OF_1
            for found in connection.execute(f"SELECT {columns} FROM entry ORDER BY id {direction}"):  # noqa: S608
                if isinstance(found[0], int):  # see `_take_stock`: without a number it has no place in the order
                    rows.append(read_row(found))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR:
            raise
    return rows  # if it is damaged: the rows before the damage


def files_of(path: Path) -> tuple[Path, Path, Path]:
    """The file and SQLite's files beside it."""
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def keep_newest(path: Path, keep: int) -> None:
    """Delete all but the newest damaged files, which are kept for inspection."""
    stamps = sorted(
        {found.name.split(".damaged-")[1].split("-")[0] for found in path.parent.glob(f"{path.name}.damaged-*")}
    )
    import shutil  # noqa: PLC0415 - only after a damage

    for old in (old for stamp in stamps[:-keep] for old in path.parent.glob(f"{path.name}.damaged-{stamp}*")):
        with contextlib.suppress(OSError):  # cleaning up is optional; the disk may be read-only
            shutil.rmtree(old) if old.is_dir() else old.unlink()
