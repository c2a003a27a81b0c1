"""A rule for letting a bundle in is no rule for running it: what keys may do at a start, and what stops a device."""

import os
import re
import time
from pathlib import Path

import pytest

from edge_runtime.errors import SignatureError
from edge_runtime.store.admission import Admissions
from edge_runtime.store.install import Policy
from edge_runtime.store.store import ModelStore
from edge_runtime.store.trust import Trust
from tests.faults.slots.operations import quick
from tests.support import builders

DAY = 86_400.0


def _rewrite(signer: builders.Signer, options: str) -> None:
    """Give the key other options in `allowed_signers`, as `provision` does."""
    principal, *_, kind, text = signer.allowed.read_text().split()
    signer.allowed.write_text(" ".join(part for part in (principal, options, kind, text) if part) + "\n")
    then = time.time() - 100 * DAY  # the file's own time is no witness here
    os.utime(signer.allowed, (then, then))


def _day(offset: float) -> str:
    return time.strftime("%Y%m%d", time.localtime(time.time() + offset * DAY))


@pytest.fixture
def signer(tmp_path: Path) -> builders.Signer:
    """A key that is valid now."""
    return builders.signer(tmp_path / "keys")


@pytest.fixture
def bundle(tmp_path: Path, signer: builders.Signer) -> Path:
    """A bundle that it signed."""
    path = builders.classification(name="activity", version="1.0.0").save(tmp_path / "activity.onnx")
    signer.sign(path)
    return path


EXPIRED = 'valid-before="{}"'
NOT_YET = 'valid-after="{}"'


@pytest.mark.parametrize(
    ("options", "day"), [(EXPIRED, -2), (NOT_YET, 2)], ids=["its end passed", "the clock is behind"]
)
def test_an_installed_bundle_runs_whatever_the_validity_of_its_key_says_now(
    tmp_path: Path, signer: builders.Signer, bundle: Path, options: str, day: int
) -> None:
    """`valid-before` passes, or the clock stands before `valid-after`: the bundle that serves is opened as before."""
    store = ModelStore(tmp_path / "models", quick, trust=Trust(signer.allowed))
    admissions = Admissions(tmp_path / "admitted.json")
    policy = Policy(allowed_signers=signer.allowed)
    store.install(bundle, policy)
    admissions.open(bundle, Trust(signer.allowed), note=True)
    now = time.time()
    # Seen from the day of the admission, the key's end passed since; or the clock lost its time, and stands before.
    _admit_at(store, tmp_path, now - 10 * DAY if options == EXPIRED else now + 10 * DAY)
    _rewrite(signer, options.format(_day(day)))
    assert store.open("activity").manifest.version == "1.0.0"
    assert Admissions(tmp_path / "admitted.json").open(bundle, Trust(signer.allowed), note=True).size > 0
    with pytest.raises(SignatureError, match=r"expired|not valid yet"):
        Admissions(None).open(bundle, Trust(signer.allowed), note=True)
    if options == EXPIRED:
        other = builders.classification(name="activity", version="1.1.0").save(tmp_path / "new.onnx")
        signer.sign(other)
        with pytest.raises(SignatureError, match="expired"):
            store.install(other, policy)


def _admit_at(store: ModelStore, folder: Path, at: float) -> None:
    """As if both had let the bundle in at another time."""
    state = store.slot("activity").path.with_name("state.json")
    state.write_text(re.sub(r'"admitted":[0-9.]+', f'"admitted":{at}', state.read_text()))
    file = folder / "admitted.json"
    digest = file.read_text().split('"')[1]
    file.write_text(f'{{"{digest}": {at}}}')


def test_a_store_of_an_earlier_release_goes_by_the_time_of_its_signature(
    tmp_path: Path, signer: builders.Signer, bundle: Path
) -> None:
    """A state without admissions: the signature's file tells when the bundle came."""
    store = ModelStore(tmp_path / "models", quick, trust=Trust(signer.allowed))
    store.install(bundle, Policy(allowed_signers=signer.allowed))
    slot = store.slot("activity")
    state = slot.path.with_name("state.json")
    state.write_text(re.sub(r'"admitted":[0-9.]+', '"admitted":0.0', state.read_text()))
    then = time.time() - 10 * DAY
    os.utime(slot.path.with_name(slot.path.name + ".sig"), (then, then))
    _rewrite(signer, EXPIRED.format(_day(-2)))
    assert store.open("activity").manifest.version == "1.0.0"


def test_revocation_and_removal_count_at_the_next_start(tmp_path: Path, signer: builders.Signer, bundle: Path) -> None:
    """A key that is named in `revoked_keys`, or gone from `allowed_signers`, opens nothing, admitted or not."""
    store = ModelStore(tmp_path / "models", quick, trust=Trust(signer.allowed))
    store.install(bundle, Policy(allowed_signers=signer.allowed))
    revoked = signer.allowed.with_name("revoked_keys")
    revoked.write_bytes(signer.key.with_suffix(".pub").read_bytes())
    with pytest.raises(SignatureError, match="revoked"):
        store.open("activity")
    revoked.unlink()
    assert store.open("activity").size > 0
    stranger = builders.signer(tmp_path / "stranger")
    signer.allowed.write_bytes(stranger.allowed.read_bytes())
    with pytest.raises(SignatureError, match="stranger"):
        store.open("activity")


def test_a_damaged_list_of_admissions_is_a_first_admission(
    tmp_path: Path, signer: builders.Signer, bundle: Path
) -> None:
    """Whatever stands in the file, a key that is good now lets the bundle in, and the file is written anew."""
    path = tmp_path / "admitted.json"
    for content in (b"", b"{", b"[1]", b'{"a": "b"}'):
        path.write_bytes(content)
        Admissions(path).open(bundle, Trust(signer.allowed), note=True)
        assert len(Admissions(path)._times) == 1


def test_an_admission_is_noted_only_where_it_is_asked_for(
    tmp_path: Path, signer: builders.Signer, bundle: Path
) -> None:
    """A look at a bundle lets nothing in; and without a file nothing is remembered."""
    path = tmp_path / "admitted.json"
    Admissions(path).open(bundle, Trust(signer.allowed), note=False)
    assert not path.exists()
    nowhere = Admissions(None)
    nowhere.open(bundle, Trust(signer.allowed), note=True)
    assert nowhere._times == {}
    Admissions(path).open(bundle, Trust(signer.allowed), note=True)
    assert path.exists()


def test_the_latest_hundred_admissions_are_remembered(tmp_path: Path, signer: builders.Signer, bundle: Path) -> None:
    """The oldest goes for a new one; a folder that cannot be written keeps no bundle from its service."""
    path = tmp_path / "admitted.json"
    path.write_text("{" + ",".join(f'"{number}":1.0' for number in range(100)) + "}")
    Admissions(path).open(bundle, Trust(signer.allowed), note=True)
    kept = list(Admissions(path)._times)
    assert (len(kept), kept[0], kept[-2]) == (100, "1", "99")
    (tmp_path / "file").write_text("no folder")
    assert Admissions(tmp_path / "file" / "admitted.json").open(bundle, Trust(signer.allowed), note=True).size > 0
