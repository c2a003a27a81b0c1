"""The optimised copy beside a bundle: the same bits, used only where it is whole and of this machine, never missed."""

import errno
import fcntl
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest

from edge_runtime.bundle import optimised_copy as optimised
from edge_runtime.bundle import optimised_copy_maker as optimised_maker
from edge_runtime.bundle.model import Model, ModelOptions
from edge_runtime.bundle.open import Bundle, open_bundle
from edge_runtime.bundle.optimised_copy import copy_path, load_model, open_copy, seal_of, wants_copy
from edge_runtime.bundle.optimised_copy_maker import EXIT_BUSY, EXIT_FAILED, EXIT_KEPT, Copies, make_copy
from edge_runtime.config.tables import ModelTable, StoreTable
from edge_runtime.errors import BundleError
from edge_runtime.store.store import ModelStore
from edge_runtime.system.log import TextFormatter
from edge_runtime.system.loop import Loop
from tests.support import builders
from tests.support.operator_kinds import KINDS, convolutions
from tests.support.stored import UNSIGNED, believed
from tests.support.waiting import wait_until

OPTIONS = ModelOptions()


@pytest.fixture
def output_of(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """The log lines so far, as a person reads them."""
    logger = logging.getLogger("edge_runtime.optimised")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger.name)
    yield lambda: "\n".join(map(TextFormatter().format, caplog.records))
    logger.removeHandler(caplog.handler)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A small bundle with convolutions."""
    return open_bundle(convolutions().save(tmp_path / "m.onnx"))


def _made(bundle: Bundle) -> bytes:
    """The copy of a bundle, as it is on the disk."""
    assert make_copy(bundle.path, bundle.digest) == EXIT_KEPT
    return copy_path(bundle.path).read_bytes()


def _sealed(bundle: Bundle, model: bytes) -> bytes:
    return model + seal_of(bundle, model)


def _is_sealed(bundle: Bundle) -> bool:
    with open_copy(bundle) as copy:
        return copy is not None


def _is_used(bundle: Bundle) -> bool:
    """Whether the model comes from its copy; it answers in any case."""
    model = load_model(bundle, OPTIONS, "always")
    plain = Model(bundle)
    windows = np.random.default_rng(2).normal(size=(3, *bundle.manifest.input.tensor_shape)).astype(np.float32)
    assert _bits(model, windows) == _bits(plain, windows)
    return model.is_optimised


def _bits(model: Model, windows: Any) -> list[bytes]:
    found = [getattr(model.run(windows), name) for name in ("label", "scores", "value", "score")]
    found += [getattr(model.run_borrowed(windows[:1]), name) for name in ("label", "scores", "value", "score")]
    return [numbers.tobytes() for numbers in found if numbers is not None]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_gives_the_same_bits(kind: Callable[[], builders.Draft], tmp_path: Path) -> None:
    """Whatever onnxruntime makes of the operators, the scores from the copy are those from the bundle, bit for bit."""
    bundle = open_bundle(kind().save(tmp_path / "m.onnx"))
    _made(bundle)
    copy, plain = load_model(bundle, OPTIONS, "always"), load_model(bundle, OPTIONS, "never")
    assert (copy.is_optimised, plain.is_optimised) == (True, False)
    rng = np.random.default_rng(9)
    for rows in (1, 2, 7, 33):
        windows = rng.normal(size=(rows, *bundle.manifest.input.tensor_shape)).astype(np.float32)
        assert _bits(copy, windows) == _bits(plain, windows)


def test_a_copy_is_an_onnx_file_of_its_own(bundle: Bundle) -> None:
    """Its seal is one more metadata entry, and the graph is not the bundle's: less is left to do."""
    data = _made(bundle)
    model = onnx.load_model_from_string(data)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert entries["edge_runtime.optimised"].startswith(optimised.key_of(bundle))
    assert len(model.graph.node) < bundle.facts.nodes
    assert stat.S_IMODE(copy_path(bundle.path).stat().st_mode) & 0o022 == 0
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["m.onnx", "m.onnx.optimised"]


def test_a_good_copy_is_not_written_again(bundle: Bundle) -> None:
    """The second time the file stays as it is: no flash is worn out."""
    _made(bundle)
    before = copy_path(bundle.path).stat()
    assert make_copy(bundle.path, bundle.digest) == EXIT_KEPT
    after = copy_path(bundle.path).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def _torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _bit(place: float) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]

    return spoil


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "torn": _torn,
    "short by a byte": lambda data: data[:-1],
    "longer by a byte": lambda data: data + b"\0",
    "without a seal": lambda data: data[: -optimised._ENTRY_BYTES],
    "empty": lambda _: b"",
    "zeros": lambda data: bytes(len(data)),
    "seal alone": lambda data: data[-optimised._ENTRY_BYTES :],
    **{f"a bit at {place:g}": _bit(place) for place in (0.0, 0.3, 0.6, 0.9, 0.97, 1.0)},
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_damaged_copy_is_never_loaded(how: str, bundle: Bundle, output_of: Callable[[], str]) -> None:
    """The bundle itself is loaded then, one line says so, and the next copy is good again."""
    path = copy_path(bundle.path)
    path.write_bytes(SPOILT[how](_made(bundle)))
    assert not _is_used(bundle)
    assert "WARNING optimised: the optimised copy is not used" in output_of()
    assert "damaged" in output_of()
    _made(bundle)
    assert _is_used(bundle)


@pytest.mark.parametrize("what", ["installed_onnxruntime", "processor"])
def test_a_copy_of_another_runtime_or_board_is_made_anew(
    what: str, bundle: Bundle, output_of: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of onnxruntime, or the card in another board: the copy is not loaded, and gives way to a new one."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(optimised, what, lambda: "another")
        old = _made(bundle)
    assert not _is_used(bundle)
    assert "made for another bundle, runtime or processor" in output_of()
    assert "WARNING" not in output_of()
    assert _made(bundle) != old
    assert _is_used(bundle)
    assert len(list(bundle.path.parent.iterdir())) == 2


def test_a_copy_made_with_other_options_is_made_anew(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option that decides what onnxruntime makes of a graph is a part of the key; threads and arena are not."""
    keys = {optimised.key_of(bundle)}
    for name, value in (("GRAPH_LEVEL", "ORT_ENABLE_BASIC"), ("FORMAT", 0)):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(optimised, name, value)
            keys.add(optimised.key_of(bundle))
    assert len(keys) == 3
    _made(bundle)
    other = ModelOptions(threads=2, arena=True)
    copy, plain = load_model(bundle, other, "always"), load_model(bundle, other, "never")
    assert copy.is_optimised
    windows = np.random.default_rng(4).normal(size=(9, *bundle.manifest.input.tensor_shape)).astype(np.float32)
    assert _bits(copy, windows) == _bits(plain, windows)


def test_another_bundle_at_the_same_path_is_not_taken_for_the_first(tmp_path: Path) -> None:
    """The copy belongs to the bytes of a bundle, and not to its name; there is one at a time."""
    path = tmp_path / "m.onnx"
    first = open_bundle(builders.regression(seed=1).save(path))
    _made(first)
    second = open_bundle(builders.regression(seed=2).save(path))
    assert not _is_sealed(second)
    assert not _is_used(second)
    with pytest.raises(BundleError, match="found another"):
        make_copy(path, first.digest)
    _made(second)
    assert _is_used(second)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("what", ["other answers", "no model"])
def test_a_copy_that_fails_is_given_up_before_the_bundle_is(
    what: str, tmp_path: Path, output_of: Callable[[], str]
) -> None:
    """Well sealed, but it does not load or fails the self-test: the bundle is loaded, and the copy is replaced."""
    bundle = open_bundle(builders.regression(seed=1).save(tmp_path / "m.onnx"))
    other = builders.regression(seed=2).to_bytes() if what == "other answers" else b"\x08\x08nothing"
    copy_path(bundle.path).write_bytes(_sealed(bundle, other))
    assert not _is_used(bundle)
    assert ("expected the golden value" if what == "other answers" else "refuses it") in output_of()
    _made(bundle)
    assert _is_used(bundle)


def test_a_copy_with_other_bits_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the tolerance of the golden answers, but not the same: whoever makes the copy notices, and keeps none."""
    draft = builders.regression(seed=1)
    bundle = open_bundle(draft.save(tmp_path / "m.onnx"))
    raw = bytearray(draft.model.graph.initializer[0].raw_data)
    raw[0] ^= 1  # the last bit of a weight
    draft.model.graph.initializer[0].raw_data = bytes(raw)
    monkeypatch.setattr(optimised_maker, "optimise", lambda _, path: Path(path).write_bytes(draft.to_bytes()))
    with pytest.raises(BundleError, match="expected the same bits"):
        make_copy(bundle.path, bundle.digest)
    assert not copy_path(bundle.path).exists()
    copy_path(bundle.path).write_bytes(_sealed(bundle, draft.to_bytes()))
    with pytest.raises(BundleError, match="expected the same bits"):
        make_copy(bundle.path, bundle.digest)
    assert not copy_path(bundle.path).exists(), "one that is there already goes"


@pytest.mark.parametrize("bits", [stat.S_IWGRP, stat.S_IWOTH])
def test_a_copy_that_others_can_write_to_is_not_loaded(bits: int, bundle: Bundle, output_of: Callable[[], str]) -> None:
    """Another account may have put anything there."""
    _made(bundle)
    path = copy_path(bundle.path)
    path.chmod(path.stat().st_mode | bits)
    assert not _is_used(bundle)
    assert "others can write to it: remove it" in output_of()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_copy_of_a_stranger_is_not_loaded(bundle: Bundle, output_of: Callable[[], str]) -> None:
    """It must belong to the daemon's user, to root, or to whoever owns the bundle."""
    _made(bundle)
    os.chown(copy_path(bundle.path), 12345, 12345)
    assert not _is_used(bundle)
    assert "it belongs to another account: remove it" in output_of()
    os.chown(bundle.path, 12345, 12345)
    assert _is_used(bundle)


@pytest.mark.parametrize("what", ["link", "pipe", "folder"])
def test_what_is_no_file_is_not_waited_for(what: str, bundle: Bundle, output_of: Callable[[], str]) -> None:
    """A link, a pipe or a folder in the place of the copy: a line in the log, and the bundle is loaded."""
    path = copy_path(bundle.path)
    if what == "link":
        _made(bundle)
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif what == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert not _is_used(bundle)
    assert ("symbolic links" if what == "link" else "it is no regular file") in output_of()


def test_a_disk_that_cannot_read_the_copy_is_one_line(
    bundle: Bundle, output_of: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector: the bundle is loaded, as if there were no copy."""
    _made(bundle)

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    assert not _is_used(bundle)
    assert 'why="Input/output error"' in output_of()


def test_a_disk_that_refuses_the_copy_is_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Full, read-only or broken: the process that makes the copy says so and ends, and leaves nothing behind."""
    monkeypatch.setattr(optimised_maker, "_step_back", lambda _: None)
    words = [str(bundle.path), bundle.digest, "0"]
    real = os.write

    def write_some(handle: int, data: Any) -> int:
        if len(data) > 1000:
            return real(handle, data[:1000]) if not os.fstat(handle).st_size else _full()
        return real(handle, data)

    def _full() -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "write", write_some)
        assert optimised_maker.main(words) == EXIT_FAILED
    assert capfd.readouterr().out == "No space left on device"
    assert [path.name for path in bundle.path.parent.iterdir()] == ["m.onnx"]

    usage = shutil.disk_usage(bundle.path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert optimised_maker.main(words) == EXIT_FAILED
    assert "and 1 MiB to spare, found 1000 free" in capfd.readouterr().out
    assert [path.name for path in bundle.path.parent.iterdir()] == ["m.onnx"]


def test_a_copy_that_another_process_makes_is_left_to_it(bundle: Bundle) -> None:
    """Two daemons on one bundle: the second one does nothing, and says nothing."""
    with bundle.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert make_copy(bundle.path, bundle.digest) == EXIT_BUSY
    assert not copy_path(bundle.path).exists()
    _made(bundle)


def test_auto_keeps_copies_of_models_that_gain(tmp_path: Path) -> None:
    """Many nodes, or some megabytes; for others a copy would be writing for nothing."""
    small = open_bundle(convolutions().save(tmp_path / "small.onnx"))
    many = open_bundle(convolutions(blocks=50).save(tmp_path / "many.onnx"))
    assert many.facts.nodes >= optimised.MANY_NODES
    assert [wants_copy(each, "auto") for each in (small, many)] == [False, True]
    assert [wants_copy(small, keep) for keep in ("always", "never")] == [True, False]
    assert wants_copy(msgspec.structs.replace(small, size=optimised.MANY_BYTES), "auto")


def test_where_signatures_are_asked_for_nothing_unsigned_is_kept_by_itself() -> None:
    """`auto` means none there; a model's own word goes before that of the store."""

    def keep(model: Any, store: Any, signers: str | None) -> str:
        config = ModelTable(name="m", bundle="m", source="s", keep_optimised=model)
        return optimised.chosen(config, StoreTable(keep_optimised=store, allowed_signers=signers))

    assert keep(None, "auto", None) == "auto"
    assert keep(None, "auto", "/keys") == "never"
    assert keep("auto", "always", "/keys") == "never"
    assert keep(None, "always", "/keys") == "always"
    assert keep("never", "always", None) == "never"
    assert keep("always", "never", "/keys") == "always"


def test_a_copy_stays_as_long_as_its_slot(tmp_path: Path) -> None:
    """The copy of the previous bundle is there for a rollback; that of a bundle that leaves the store goes with it."""
    store = ModelStore(tmp_path / "store", believed)
    paths = []
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        draft = builders.classification(name="comfort", version=version)
        slot = store.install(draft.save(tmp_path / "new.onnx"), UNSIGNED).slot
        store.confirm("comfort", slot.digest)
        _made(open_bundle(slot.path))
        paths.append(copy_path(slot.path))
    assert [path.exists() for path in paths] == [False, True, True]
    back = store.rollback("comfort")
    assert load_model(store.open("comfort"), OPTIONS, "always").is_optimised
    assert copy_path(back.path) == paths[1]
    assert store.entries("comfort")[0].version == "1.1.0"


def _tend(bundle: Bundle, *, wanted: bool, done: Callable[[], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimised_maker, "WAIT_S", 0.0)
    loop = Loop()
    copies = Copies(loop)
    copies.tend(bundle, wanted=wanted)

    def is_done() -> bool:
        loop.run_once(0.01)
        return done()

    wait_until(is_done, "what becomes of the copy", 60.0)
    copies.end()


def test_a_copy_that_is_not_wanted_any_more_is_removed(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """`never`, a bundle that gains nothing, or signatures: the file of before does not lie about."""
    _made(bundle)
    path = copy_path(bundle.path)
    assert not optimised.is_settled(load_model(bundle, OPTIONS, "never"), "never")
    _tend(bundle, wanted=False, done=lambda: not path.exists(), monkeypatch=monkeypatch)
    assert optimised.is_settled(load_model(bundle, OPTIONS, "never"), "never")


def test_only_copies_are_removed(bundle: Bundle) -> None:
    """A file or a folder of another account that happens to have that name stays."""
    path = copy_path(bundle.path)
    path.write_text("notes of mine")
    optimised_maker.remove_copy(bundle.path)
    assert path.read_text() == "notes of mine"
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        optimised_maker.remove_copy(bundle.path)
    assert path.is_dir()


def test_a_process_that_cannot_make_the_copy_is_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, output_of: Callable[[], str]
) -> None:
    """It crashes, or runs out of memory: the daemon says so and goes on without."""
    monkeypatch.setattr(optimised_maker, "MAPPED_BY_RUNTIME", 16 << 20)
    monkeypatch.setattr(optimised_maker, "MODEL_BYTES", 0)
    _tend(bundle, wanted=True, done=lambda: "no optimised copy is kept" in output_of(), monkeypatch=monkeypatch)
    assert "why=" in output_of()
    assert "Traceback" not in output_of()
    assert not copy_path(bundle.path).exists()


def test_an_interpreter_that_is_not_there_is_one_line(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, output_of: Callable[[], str]
) -> None:
    """Not even a process is to be had."""
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    _tend(bundle, wanted=True, done=lambda: "no optimised copy is kept" in output_of(), monkeypatch=monkeypatch)
    assert "No such file or directory" in output_of()
