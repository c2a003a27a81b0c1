"""The optimised copy of a bundle, `BUNDLE.optimised` beside it: the graph as onnxruntime optimises it at every start.

`load_model` loads the daemon's models: from a valid copy, else from the bundle. The copy is an ONNX file whose last
metadata entry is its seal: a digest of everything that decides the optimisation (bundle, release of onnxruntime,
processor, options), and a checksum of the bytes before. It is verified in pieces and then read by onnxruntime itself,
so it is never in memory as a whole.

Guarantee: the bundle has been read and checked in full before its copy is looked at. A copy that is torn, damaged, made
for another bundle, release, processor or with other options, or that others can write to, is not loaded; one that does
not load or fails its self-test is given up for the bundle itself. The scores are the same bits: whoever makes a copy
(`bundle/optimised_copy_maker.py`) compares them first. Nothing is written here.

Weak points: the seal is no signature, and its checksum is made for accidents (CRC-32: faster than a digest, above all
on boards whose processor has no instructions for those). A copy is worth as much as the folder and the owner of its
bundle, so where signatures are asked for there is none, unless the device file says `always`. There is one copy a
bundle: two boards that share a folder take it from each other at every start. A copy that crashed onnxruntime would do
so at every start; the process that made it has loaded it on this machine.
"""

import hashlib
import logging
import os
import platform
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from edge_runtime.bundle.golden import check_golden
from edge_runtime.bundle.int8_operators import EXACT_ENTRY
from edge_runtime.bundle.model import GRAPH_LEVEL, Model, ModelOptions
from edge_runtime.bundle.onnx_file import DEFAULT_LIMITS
from edge_runtime.bundle.open import Bundle, installed_onnxruntime, one_line
from edge_runtime.config.tables import KeepOptimised, ModelTable, StoreTable
from edge_runtime.errors import EdgeError
from edge_runtime.system.log import fields, get_logger

SUFFIX = ".optimised"
FORMAT = 1  # of the seal, and of how copies are made
MAX_BYTES = 2 * DEFAULT_LIMITS.max_bytes  # folded constants take space
# From which on `auto` keeps a copy. Measured, docs/performance.md: 25 to 50 µs a node, 1 ms for each MiB and 2 of a
# convolution's weights; at these bounds that is a twentieth of a start.
MANY_NODES = 200
MANY_BYTES = 4 * 1024 * 1024
# What /proc/cpuinfo says of a processor's kind and abilities, on x86 and ARM; clock rates and the like are left out.
_OF_PROCESSOR = frozenset({
    "vendor_id", "cpu family", "model", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa",
})  # fmt: skip
_PIECE_BYTES = 256 * 1024
_KEY_CHARS, _SUM_CHARS = hashlib.sha256().digest_size * 2, 8

_log = get_logger("optimised")


def load_model(bundle: Bundle, options: ModelOptions, keep: KeepOptimised) -> Model:
    """The model of a bundle after its golden answers; from its optimised copy if that is valid.

    Args:
        bundle: the bundle, opened.
        options: how to run it.
        keep: the value of `chosen`.

    Raises:
        BundleError: the bundle does not load, or gives other answers.
        ModelError: it cannot run.
    """
    if wants_copy(bundle, keep):
        with open_copy(bundle) as copy:
            model = None if copy is None else _try_copy(bundle, options, copy)
        if model is not None:
            return model
    model = Model(bundle, options)
    check_golden(model)
    return model


def _try_copy(bundle: Bundle, options: ModelOptions, copy: str) -> Model | None:
    try:
        model = Model(bundle, options, optimised=copy)
        check_golden(model)
        model.run(np.zeros((1, *bundle.manifest.input.tensor_shape), np.float32))  # a bundle may have no golden answers
    except EdgeError as error:
        _say_unused(bundle, one_line(str(error)))
        return None
    _log.info("loaded from its optimised copy", extra=fields(bundle=bundle.manifest.name))
    return model


def chosen(config: ModelTable, store: StoreTable) -> KeepOptimised:
    """The setting for one model of a device file; `auto` keeps no unsigned copy where signatures are required."""
    keep = config.keep_optimised or store.keep_optimised
    return "never" if keep == "auto" and store.allowed_signers is not None else keep


def wants_copy(bundle: Bundle, keep: KeepOptimised) -> bool:
    """Whether to keep a copy; `auto` keeps one where the start gets faster."""
    if keep != "auto":
        return keep == "always"
    return bundle.facts.nodes >= MANY_NODES or bundle.size >= MANY_BYTES


def is_settled(model: Model, keep: KeepOptimised) -> bool:
    """Whether nothing is to do for a copy: it is in use, or there is none and should be none."""
    return model.is_optimised or not (wants_copy(model.bundle, keep) or copy_path(model.bundle.path).exists())


def copy_path(bundle: Path) -> Path:
    """The path of a bundle's copy."""
    return bundle.with_name(bundle.name + SUFFIX)


@contextmanager
def open_copy(bundle: Bundle) -> Iterator[str | None]:
    """A path of a bundle's copy, valid within the block: that of the open file, even if it is renamed.

    None without a valid copy; the log has a line about an invalid one.
    """
    handle = -1
    try:
        handle = os.open(copy_path(bundle.path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        _require_private(os.fstat(handle), bundle.path)
        check_seal(bundle, handle)
    except FileNotFoundError:
        fit = False
    except _StaleError as error:
        fit = False
        _say_unused(bundle, str(error), logging.INFO)
    except (_UnfitError, OSError) as error:
        fit = False
        _say_unused(bundle, (error.strerror if isinstance(error, OSError) else None) or str(error))
    else:
        fit = True
    try:
        yield path_of(handle) if fit else None
    finally:
        if handle >= 0:
            os.close(handle)


def path_of(handle: int) -> str:
    """A path that leads to an open file."""
    return f"/proc/self/fd/{handle}"


def seal_of(bundle: Bundle, model: bytes) -> bytes:
    """The seal of a copy: a metadata entry to append to the optimised model."""
    return _entry(key_of(bundle), f"{zlib.crc32(model):08x}")


def check_seal(bundle: Bundle, handle: int) -> None:
    """Check that an open file is a complete copy of this bundle, made by this onnxruntime for this processor.

    Raises:
        _UnfitError: it is not.
        OSError: it cannot be read.
    """
    end = max(0, os.fstat(handle).st_size - _ENTRY_BYTES)
    seal = _read_entry(os.pread(handle, _ENTRY_BYTES, end))
    if seal is None:
        raise _UnfitError("it is torn or damaged")
    key, checksum = seal
    if key != key_of(bundle):
        raise _StaleError("it was made for another bundle, runtime or processor")
    found, at = 0, 0
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while at < end:
        count = os.preadv(handle, [buffer[: end - at]], at)
        if not count:
            break
        found, at = zlib.crc32(buffer[:count], found), at + count
    if f"{found:08x}" != checksum:
        raise _UnfitError("it is damaged")


def has_seal(path: Path) -> bool:
    """Whether a file ends with a seal, of any bundle.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _ENTRY_BYTES))
        return _read_entry(file.read(_ENTRY_BYTES)) is not None


def key_of(bundle: Bundle) -> str:
    """A digest of everything that decides how onnxruntime optimises a graph."""
    parts: tuple[object, ...] = (FORMAT, bundle.digest, installed_onnxruntime(), GRAPH_LEVEL, processor())
    if bundle.facts.int8 != "none":
        from edge_runtime.bundle.int8 import saturates  # noqa: PLC0415 - only where a model computes in int8

        parts += EXACT_ENTRY if saturates() else ("int8",)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def processor() -> str:
    """Kind and features of this machine's processors: onnxruntime arranges weights by them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR}
    return "\n".join([platform.machine(), *sorted(found)])


class _UnfitError(Exception):
    """A file that must not be loaded, and why."""


class _StaleError(_UnfitError):
    """A valid copy of another bundle or for another machine."""


def _require_private(found: os.stat_result, bundle: Path) -> None:
    """Require that a copy is a regular file, writable only by accounts that can write to the bundle.

    Raises:
        _UnfitError: it is something else.
    """
    if not stat.S_ISREG(found.st_mode):
        raise _UnfitError("it is no regular file")
    if found.st_uid not in {0, os.geteuid(), bundle.stat().st_uid}:
        raise _UnfitError("it belongs to another account: remove it")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _UnfitError("others can write to it: remove it")
    if found.st_size > MAX_BYTES:
        raise _UnfitError(f"it is larger than {MAX_BYTES} bytes")


def _say_unused(bundle: Bundle, why: str, level: int = logging.WARNING) -> None:
    about = fields(bundle=bundle.manifest.name, copy=copy_path(bundle.path), why=why)
    _log.log(level, "the optimised copy is not used", extra=about)


# An entry of `metadata_props` as protobuf writes it (onnx.proto: field 14 of ModelProto, strings 1 and 2 of the entry).
# Fields of a message may come in any order, so that one more at its end leaves a whole ONNX file. Lengths stay below
# 128, where protobuf writes them in one byte.
_NAME = b"edge_runtime.optimised"
_HEAD = bytes([14 << 3 | 2])
_NAME_FIELD = bytes([1 << 3 | 2, len(_NAME)]) + _NAME


def _entry(key: str, checksum: str) -> bytes:
    value = (key + checksum).encode("utf-8", "replace")
    inner = _NAME_FIELD + bytes([2 << 3 | 2, len(value)]) + value
    return _HEAD + bytes([len(inner)]) + inner


def _read_entry(entry: bytes) -> tuple[str, str] | None:
    """Key and checksum of a seal; None where it is none."""
    words = entry[-_KEY_CHARS - _SUM_CHARS :].decode("ascii", "replace")
    key, checksum = words[:_KEY_CHARS], words[_KEY_CHARS:]
    return (key, checksum) if entry == _entry(key, checksum) else None


_ENTRY_BYTES = len(_entry("0" * _KEY_CHARS, "0" * _SUM_CHARS))
