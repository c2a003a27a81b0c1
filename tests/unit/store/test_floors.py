"""Versions only go up: what a floor lets in, what raises it, and a permission that is used once."""

from pathlib import Path

import msgspec
import pytest

from edge_runtime.errors import CommandError
from edge_runtime.store.floors import Floors, UsedPermission, VersionFloor
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.records import BundleRecord, SlotState


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    """An empty store."""
    folder = StoreFolder(tmp_path / "models")
    folder.make()
    return folder


@pytest.fixture
def floors(folder: StoreFolder) -> Floors:
    """Its floors."""
    return Floors(folder)


def _record(version: str, digest: str = "") -> BundleRecord:
    return BundleRecord(version=version, digest=digest or f"digest-{version}")


@pytest.mark.parametrize(
    ("floor", "version", "digest", "is_in"),
    [
        ("1.2.0", "1.2.1", "other", True),
        ("1.2.0", "1.10.0", "other", True),
        ("1.2.0", "2.0.0", "other", True),
        ("1.2.0", "1.2.0", "the same", True),
        ("1.2.0", "1.2.0", "other", False),
        ("1.2.0", "1.1.9", "the same", False),
        ("1.10.0", "1.9.0", "other", False),
        ("1.2.0", "", "the same", False),
        ("1.2.0", "newest", "other", False),
        ("", "0.0.1", "other", True),
        ("no version", "0.0.1", "other", True),
    ],
)
def test_a_floor_lets_in_what_is_above_it_or_made_it(floor: str, version: str, digest: str, is_in: bool) -> None:
    """The same version with other content is another bundle; what is no version is not above one."""
    assert VersionFloor(version=floor, digest="the same").admits(version, digest) is is_in


def test_a_floor_only_goes_up(floors: Floors) -> None:
    """By version; the same version does not change whose it is."""
    floors.raise_to("activity", _record("1.9.0"))
    for version in ("1.8.0", "", "newest"):
        floors.raise_to("activity", _record(version))
        assert floors.read("activity").version == "1.9.0"
    floors.raise_to("activity", _record("1.9.0", "another"))
    assert floors.read("activity").digest == "digest-1.9.0"
    floors.raise_to("activity", _record("1.10.0"))
    assert (floors.read("activity").version, floors.read("activity").digest) == ("1.10.0", "digest-1.10.0")
    assert floors.read("other") == VersionFloor()


def test_a_new_floor_knows_nothing() -> None:
    """No version, no release, no permission that was used."""
    assert VersionFloor() == VersionFloor(version="", digest="", sequence=0, used=[])
    assert UsedPermission(permission="p", digest="d").settled is False


def test_raising_the_version_keeps_the_rest(floors: Floors) -> None:
    """The number of the last release, and permissions that are used up."""
    floors.raise_sequence("activity", 7)
    floors.use_permission("activity", "p", "d")
    floors.raise_to("activity", _record("1.0.0"))
    found = floors.read("activity")
    assert (found.sequence, found.used, found.version) == (7, [UsedPermission(permission="p", digest="d")], "1.0.0")


def test_the_number_of_releases_only_goes_up_and_is_written_only_then(folder: StoreFolder, floors: Floors) -> None:
    """A release document that is sent again costs no write."""
    floors.raise_sequence("activity", 5)
    assert floors.read("activity").sequence == 5
    before = folder.floor("activity").stat().st_ino
    for sequence in (5, 4, 0):
        floors.raise_sequence("activity", sequence)
        assert floors.read("activity").sequence == 5
    assert folder.floor("activity").stat().st_ino == before
    floors.raise_sequence("activity", 6)
    assert floors.read("activity").sequence == 6


def test_a_permission_is_noted_once_and_settled_with_its_bundle(folder: StoreFolder, floors: Floors) -> None:
    """Another bundle's is not settled with it; what changes nothing is not written."""
    floors.use_permission("activity", "first", "d1")
    floors.use_permission("activity", "second", "d2")
    floors.settle_permissions("activity", "d1")
    expected = [
        UsedPermission(permission="first", digest="d1", settled=True),
        UsedPermission(permission="second", digest="d2"),
    ]
    assert floors.read("activity").used == expected
    before = folder.floor("activity").stat().st_ino
    floors.use_permission("activity", "first", "d3")
    floors.settle_permissions("activity", "d1")
    floors.settle_permissions("activity", "d4")
    assert floors.read("activity").used == expected
    assert folder.floor("activity").stat().st_ino == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 100_000, b'{"version": 3}', b"\xff", None])
def test_a_damaged_floor_is_that_of_the_newest_bundle_that_is_known(
    folder: StoreFolder, floors: Floors, damage: bytes | None
) -> None:
    """By version, with its digest; without a state there is none."""
    if damage is not None:
        folder.floor("activity").write_bytes(damage)
    assert floors.read("activity") == VersionFloor()
    assert floors.known("activity", None) == VersionFloor()
    history = [_record("1.10.0"), _record("no version"), _record("1.2.0")]
    state = SlotState(active=_record("1.9.0"), history=history, staged=[_record("3.0.0")])
    found = floors.known("activity", state)
    assert (found.version, found.digest) == ("1.10.0", "digest-1.10.0")
    floors.raise_to("activity", _record("1.1.0"))
    assert floors.known("activity", state).version == "1.1.0", "a floor that is there is taken as it stands"


def test_what_is_below_the_floor_is_refused_in_words(floors: Floors) -> None:
    """Version and remedy are named."""
    state = SlotState(active=_record("1.0.0"))
    floors.raise_to("activity", _record("2.0.0"))
    with pytest.raises(CommandError, match=r"activity: expected a version of 2\.0\.0 or above, found 1\.9\.0"):
        floors.require_admitted("activity", _record("1.9.0"), state)
    floors.require_admitted("activity", _record("2.0.0"), state)
    floors.require_admitted("activity", _record("2.0.1"), state)


def test_each_name_has_its_own_floor(folder: StoreFolder, floors: Floors) -> None:
    """A file of its name, and readable by others' tools."""
    floors.raise_to("a/b", _record("1.0.0"))
    floors.raise_to("a", _record("2.0.0"))
    assert (floors.read("a/b").version, floors.read("a").version) == ("1.0.0", "2.0.0")
    assert msgspec.json.decode(folder.floor("a").read_bytes())["version"] == "2.0.0"
