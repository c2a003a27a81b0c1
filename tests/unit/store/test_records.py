"""What becomes of a name's bundles: the changes of a state as plain values, and a state file that is damaged."""

import os
from pathlib import Path

import msgspec
import pytest

from edge_runtime.bundle.open import open_bundle
from edge_runtime.errors import CommandError
from edge_runtime.store.layout import StoreFolder
from edge_runtime.store.records import MAX_WHY, BundleRecord, ListedBundle, Slot, SlotState, StateFiles
from edge_runtime.store.trust import Trust
from tests.support import builders


def _record(version: str, *, proven: bool = False, starts: int = 0) -> BundleRecord:
    return BundleRecord(version=version, digest=f"digest-{version}", proven=proven, starts=starts)


def _versions(records: list[BundleRecord]) -> list[str]:
    return [record.version for record in records]


# --- changes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        # the active one first, then history: (version, proven, starts)
        ([("1", True, 0)], ["1"]),
        ([("1", False, 0)], ["1"]),
        ([("1", False, 2)], ["1"]),  # doubtful, but all there is
        ([("2", True, 0), ("1", True, 0)], ["2"]),
        ([("3", True, 1), ("2", False, 0)], ["3"]),  # proven, however often it was started since
        ([("2", False, 0), ("1", True, 0)], ["2", "1"]),  # no daemon has watched it: by hand, back by one
        ([("2", False, 1), ("1", True, 0)], ["1"]),  # a daemon has, and it was not confirmed
        ([("2", False, 1), ("1", False, 0)], ["1"]),
        ([("2", False, 1), ("1", False, 1)], ["2"]),
        ([("3", False, 0), ("2", False, 0), ("1", True, 0)], ["3", "1"]),
        ([("3", False, 1), ("2", False, 0), ("1", True, 0)], ["2", "1"]),
        ([("3", True, 0), ("2", False, 0), ("1", True, 0)], ["3"]),
    ],
)
def test_history_keeps_the_one_before_and_the_last_proven_one(
    before: list[tuple[str, bool, int]], expected: list[str]
) -> None:
    """One that was started on probation and never confirmed is none to go back to, where there is another."""
    records = [_record(version, proven=proven, starts=starts) for version, proven, starts in before]
    state = SlotState(active=records[0], history=records[1:])
    state.switch_to(_record("9"))
    assert state.active.version == "9"
    assert _versions(state.history) == expected


def test_a_bundle_that_becomes_active_stands_nowhere_else() -> None:
    """Neither as staged nor as rejected nor as its own predecessor."""
    again, other = _record("1"), _record("3")
    state = SlotState(active=_record("2"), history=[again], staged=[_record("1"), other], rejected=[again, other])
    state.switch_to(_record("1"))
    assert _versions(state.history) == ["2"]
    assert _versions(state.staged) == ["3"]
    assert _versions(state.rejected) == ["3"]


def test_two_bundles_are_staged_and_the_oldest_goes() -> None:
    """The newest first; one that is staged again counts once."""
    state = SlotState(active=_record("0"))
    for version, expected in (("1", ["1"]), ("2", ["2", "1"]), ("3", ["3", "2"]), ("2", ["2", "3"]), ("4", ["4", "2"])):
        state.stage(_record(version))
        assert _versions(state.staged) == expected


def test_the_shadow_is_never_pushed_out() -> None:
    """It runs beside the active one at this moment; another goes instead."""
    state = SlotState(active=_record("0"), shadow="digest-1")
    for version in ("1", "2", "3"):
        state.stage(_record(version))
    assert _versions(state.staged) == ["3", "1"]
    assert state.shadow_record() is state.staged[1]
    assert state.is_shadow(_record("1"))
    assert not state.is_shadow(_record("3"))


def test_without_a_shadow_no_bundle_is_one() -> None:
    """Not even one whose digest is empty, as that of a damaged state may be."""
    nameless = BundleRecord(version="1", digest="")
    state = SlotState(active=_record("0"), staged=[nameless])
    assert not state.is_shadow(nameless)
    assert state.shadow_record() is None


def test_going_back_by_hand_keeps_the_one_that_is_left() -> None:
    """Staged, with what happened to it."""
    state = SlotState(active=_record("3"), history=[_record("2"), _record("1", proven=True)], staged=[_record("4")])
    state.return_to_previous("rolled back by hand")
    assert (state.active.version, _versions(state.history), _versions(state.staged)) == ("2", ["1"], ["3", "4"])
    assert state.staged[0].why == "rolled back by hand"


def test_a_failure_goes_back_to_the_newest_proven_one_and_says_why_on_both_sides() -> None:
    """What stands between them stays; the failed one is remembered once, and the start count begins anew."""
    state = SlotState(
        active=_record("3", starts=3),
        history=[_record("2"), _record("1", proven=True, starts=2)],
        rejected=[_record("0"), _record("3")],
    )
    state.fail_active("too slow")
    assert (state.active.version, state.active.starts, _versions(state.history)) == ("1", 0, ["2"])
    assert state.active.why == "went back from 3: too slow"
    assert [(record.version, record.why) for record in state.rejected] == [("3", "too slow"), ("0", "")]


def test_without_a_proven_one_a_failure_goes_back_by_one() -> None:
    """A long reason is cut where it would fill the state."""
    state = SlotState(active=_record("3"), history=[_record("2"), _record("1")])
    state.fail_active("x" * 1000)
    assert (state.active.version, _versions(state.history)) == ("2", ["1"])
    assert len(state.active.why) == len(state.rejected[0].why) == MAX_WHY == 300


def test_a_shadow_that_fails_is_rejected_and_leaves_the_active_one_alone() -> None:
    """With its reason, as far as that fits."""
    state = SlotState(active=_record("1"), staged=[_record("2"), _record("3")], shadow="digest-2")
    state.fail_staged(state.staged[0], "as a shadow: " + "x" * 1000)
    assert (state.active.version, _versions(state.staged), _versions(state.rejected)) == ("1", ["3"], ["2"])
    assert len(state.rejected[0].why) == MAX_WHY


def test_files_of_every_bundle_that_may_serve_are_kept() -> None:
    """Those of rejected ones are not."""
    state = SlotState(
        active=_record("1"), history=[_record("2")], staged=[_record("3")], rejected=[_record("4")], shadow=""
    )
    assert state.kept() == {"digest-1", "digest-2", "digest-3"}


# --- words ------------------------------------------------------------------------------------------------------------


def test_a_record_begins_unproven_and_unknown() -> None:
    """As a state file of an older release has it, which names fewer things."""
    record = msgspec.json.decode(b'{"version":"1","digest":"d"}', type=BundleRecord)
    assert (record.size, record.proven, record.starts, record.why, record.admitted) == (0, False, 0, "", 0.0)
    assert record.signers == []
    assert record.word == "probation"
    assert BundleRecord(version="1", digest="d", proven=True).word == "active"
    assert msgspec.json.decode(b'{"active":{"version":"1","digest":"d"}}', type=SlotState).format == 1


def test_a_listed_bundle_is_no_shadow_unless_it_is_one() -> None:
    """`models list` marks one at most."""
    assert ListedBundle("m", "1", "d", "active").shadow is False


def test_a_slot_says_its_state_in_words() -> None:
    """As it stands behind "is"."""
    for state, words in (("probation", "active, on probation"), ("active", "active"), ("staged", "staged")):
        assert Slot("m", "1", "d", Path("x"), state).standing == words


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> StoreFolder:
    """A store with the folder of one name."""
    folder = StoreFolder(tmp_path / "models")
    folder.make()
    folder.of("activity").mkdir()
    return folder


def _files(folder: StoreFolder, preferred: str = "", trust: Trust | None = None) -> StateFiles:
    return StateFiles(folder, lambda _: preferred, trust)


def test_a_state_is_read_as_it_was_written_but_for_what_is_over(folder: StoreFolder) -> None:
    """A hundred rejected digests are remembered, the newest; a shadow that is staged no more is none."""
    files = _files(folder)
    state = SlotState(
        active=_record("1"), rejected=[_record(str(number)) for number in range(101)], shadow="digest-7", staged=[]
    )
    files.save("activity", state)
    found = files.load("activity")
    assert found is not None
    assert _versions(found.rejected) == [str(number) for number in range(100)]
    assert found.shadow == ""
    state = SlotState(active=_record("1"), staged=[_record("7")], shadow="digest-7")
    files.save("activity", state)
    found = files.load("activity")
    assert found is not None
    assert found.shadow == "digest-7"


def test_a_name_that_is_not_there_has_no_state(folder: StoreFolder) -> None:
    """Nor has one in whose place a file stands; one that must be there is asked for in words."""
    files = _files(folder)
    assert files.load("activity") is None
    (folder.root / "file").write_text("no folder")
    assert files.load("file") is None
    with pytest.raises(CommandError, match=r"expected a model that is installed \(none\), found other"):
        files.require("other")
    files.save("activity", SlotState(active=_record("1")))
    with pytest.raises(CommandError, match=r"expected a model that is installed \(activity\), found other"):
        files.require("other")
    assert files.require("activity").active.version == "1"
    assert files.stamp("other") == (0, 0, 0)
    found = folder.state("activity").stat()
    assert files.stamp("activity") == (found.st_ino, found.st_mtime_ns, found.st_size)


def test_a_state_that_cannot_be_read_is_no_damage(folder: StoreFolder) -> None:
    """Nothing is rebuilt over it: a folder stands in its place."""
    folder.state("activity").mkdir()
    with pytest.raises(CommandError, match="cannot be read: Is a directory: check the disk"):
        _files(folder).load("activity")


def _keep(folder: StoreFolder, tmp_path: Path, version: str, name: str = "activity") -> str:
    path = builders.classification(name=name, version=version, seed=len(version)).save(tmp_path / "a.onnx")
    digest = open_bundle(path).digest
    path.rename(folder.of("activity") / f"{digest}.onnx")
    return digest


def test_a_damaged_state_is_rebuilt_with_the_newest_and_two_before_it(folder: StoreFolder, tmp_path: Path) -> None:
    """By version and not by text; the bundle of the floor goes before all; what is not what its name says is left."""
    digests = {version: _keep(folder, tmp_path, version) for version in ("1.9.0", "1.10.0", "1.2.0", "0.1.0")}
    other = _keep(folder, tmp_path, "9.0.0", name="other")
    (folder.of("activity") / f"{'0' * 64}.onnx").write_bytes(
        (folder.of("activity") / f"{digests['1.2.0']}.onnx").read_bytes()
    )
    (folder.of("activity") / "noise.onnx").write_bytes(b"no bundle")
    folder.state("activity").write_bytes(b"{")
    found = _files(folder).load("activity")
    assert found is not None
    assert [found.active.version, *_versions(found.history)] == ["1.10.0", "1.9.0", "1.2.0"]
    assert found.active.why == "its state was damaged and rebuilt"
    assert found.active.size == (folder.of("activity") / f"{found.active.digest}.onnx").stat().st_size
    assert (found.active.proven, found.active.admitted, found.history[0].why) == (False, 0.0, "")
    assert other not in {record.digest for record in (found.active, *found.history)}
    preferred = _files(folder, preferred=digests["1.2.0"]).load("activity")
    assert preferred is not None
    assert [preferred.active.version, *_versions(preferred.history)] == ["1.2.0", "1.10.0", "1.9.0"]


def test_a_damaged_state_without_a_sound_bundle_is_none(folder: StoreFolder) -> None:
    """There is nothing that could be active."""
    folder.state("activity").write_bytes(b"{")
    (folder.of("activity") / "noise.onnx").write_bytes(b"no bundle")
    assert _files(folder).load("activity") is None


def test_a_rebuilt_state_holds_only_what_is_signed(folder: StoreFolder, tmp_path: Path) -> None:
    """Who can write a file into the store gets no model into service by damaging the state."""
    signer = builders.signer(tmp_path / "keys")
    unsigned = _keep(folder, tmp_path, "2.0.0")
    signed = _keep(folder, tmp_path, "1.0.0")
    signer.sign(folder.bundle("activity", signed))
    then = 1.7e9
    os.utime(folder.bundle("activity", signed).with_name(f"{signed}.onnx.sig"), (then, then))
    folder.state("activity").write_bytes(b"{")
    found = _files(folder, preferred=unsigned, trust=Trust(signer.allowed)).load("activity")
    assert found is not None
    assert (found.active.digest, found.history, found.active.admitted) == (signed, [], then)


def test_a_slot_names_the_file_and_when_it_was_let_in(folder: StoreFolder) -> None:
    """By the record, else by the signature's file, else it is not known."""
    files = _files(folder)
    record = BundleRecord(version="1", digest="d", why="because", admitted=5.0)
    slot = files.slot("activity", record)
    assert (slot.path, slot.state, slot.why, slot.admitted) == (
        folder.bundle("activity", "d"),
        "probation",
        "because",
        5.0,
    )
    assert files.slot("activity", record, "staged").state == "staged"
    record.admitted = 0.0
    assert files.slot("activity", record).admitted is None
    signature = folder.of("activity") / "d.onnx.sig"
    signature.write_text("x")
    os.utime(signature, (7.0, 7.0))
    assert files.slot("activity", record).admitted == 7.0
