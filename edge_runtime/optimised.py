"""The optimised copy of a bundle, `BUNDLE.optimised` beside it: what onnxruntime makes of the graph at every start.

`load_model` is how the daemon gets a model: from the copy where there is a good one, else from the bundle. The copy is
an ONNX file, which ends with one more metadata entry, its seal: a digest of all that decides what onnxruntime makes of
a graph (bundle, release of onnxruntime, processor, options), and one of the bytes before.

Guarantee: the bundle has been read and checked in full before its copy is looked at. A copy that is torn, damaged, made
for another bundle, release, processor or with other options, or that others can write to, is not loaded; one that does
not load or fails its self-test is given up for the bundle itself. The scores are the same bits: whoever makes a copy
(`optimised_maker.py`) compares them first. Nothing is written here.

Weak points: the seal is no signature. A copy is worth as much as the folder and the owner of its bundle, so where
signatures are asked for there is none, unless the device file says `always`. There is one copy a bundle: two boards
that share a folder take it from each other at every start.
"""

import hashlib
import logging
import os
import platform
import stat
from functools import cache
from pathlib import Path

import numpy as np

from edge_runtime.bundle import Bundle, installed_onnxruntime, one_line
from edge_runtime.errors import EdgeError
from edge_runtime.golden import check_golden
from edge_runtime.log import fields, get_logger
from edge_runtime.model import GRAPH_LEVEL, Model, ModelOptions
from edge_runtime.onnx_file import DEFAULT_LIMITS
from edge_runtime.settings import KeepOptimised, Store
from edge_runtime.settings import Model as ModelConfig

SUFFIX = ".optimised"
FORMAT = 1  # of the seal, and of how copies are made
MAX_BYTES = 2 * DEFAULT_LIMITS.max_bytes  # constants that were folded take room
# From which on `auto` keeps a copy. Measured, docs/performance.md: 25 to 50 µs a node, and 2 ms for each MiB of a
# convolution's weights; below these bounds no more than a twentieth of a start.
MANY_NODES = 200
MUCH_CONVOLUTION = 4 * 1024 * 1024
_CONVOLUTIONS = ("Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv")
# What /proc/cpuinfo says of a processor's kind and abilities, on x86 and ARM; clock rates and the like are left out.
_OF_PROCESSOR = frozenset({
    "vendor_id", "cpu family", "model", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features", "isa",
})  # fmt: skip
_HEX = hashlib.sha256().digest_size * 2

_log = get_logger("optimised")


def load_model(bundle: Bundle, options: ModelOptions, keep: KeepOptimised) -> Model:
    """The model of a bundle, which has given its golden answers; from its optimised copy where it has a good one.

    Args:
        bundle: the bundle, opened.
        options: how to run it.
        keep: what `chosen` says.

    Raises:
        BundleError: the bundle does not load, or gives other answers.
        ModelError: it cannot even run.
    """
    copy = read_copy(bundle) if wants_copy(bundle, keep) else None
    if copy is not None:
        try:
            model = Model(bundle, options, optimised=copy)
            check_golden(model)
            model.run(np.zeros((1, *bundle.manifest.input.tensor_shape), np.float32))  # a bundle may have no goldens
        except EdgeError as error:
            _say_unused(bundle, one_line(str(error)))
        else:
            _log.info("loaded from its optimised copy", extra=fields(bundle=bundle.manifest.name))
            return model
    model = Model(bundle, options)
    check_golden(model)
    return model


def chosen(config: ModelConfig, store: Store) -> KeepOptimised:
    """What a device file wants for one of its models: nothing unsigned where signatures are asked for, by itself."""
    keep = config.keep_optimised or store.keep_optimised
    return "never" if keep == "auto" and store.allowed_signers is not None else keep


def wants_copy(bundle: Bundle, keep: KeepOptimised) -> bool:
    """Whether a copy is to be kept; `auto` does so where it gains something."""
    if keep != "auto":
        return keep == "always"
    facts = bundle.facts
    if facts.nodes >= MANY_NODES:
        return True
    return facts.tensor_bytes >= MUCH_CONVOLUTION and any(op in _CONVOLUTIONS for _, op in facts.operators)


def is_settled(model: Model, keep: KeepOptimised) -> bool:
    """Whether there is nothing to do for a copy: it is in use, or there is none and should be none."""
    return model.is_optimised or not (wants_copy(model.bundle, keep) or copy_path(model.bundle.path).exists())


def copy_path(bundle: Path) -> Path:
    """Where the copy of a bundle is."""
    return bundle.with_name(bundle.name + SUFFIX)


def read_copy(bundle: Bundle) -> bytes | None:
    """The copy of a bundle, fit to be loaded; None, and a line in the log where there is something else."""
    path = copy_path(bundle.path)
    try:
        data = _read_private(path, bundle.path)
    except FileNotFoundError:
        return None
    except OSError as error:
        _say_unused(bundle, error.strerror or str(error))
        return None
    except _UnfitError as error:
        _say_unused(bundle, str(error))
        return None
    if not is_sealed(bundle, data):
        made_for, made_of = _seals(data)
        if made_for is None:
            _say_unused(bundle, "it is torn or damaged")
        elif made_for != key_of(bundle):
            _say_unused(bundle, "it was made for another bundle, runtime or processor", logging.INFO)
        else:
            _say_unused(bundle, f"it is damaged: expected the digest {made_of[:12]}")
        return None
    return data


def seal(bundle: Bundle, model: bytes) -> bytes:
    """The copy: an optimised model with its seal, one more of its metadata entries, at the end."""
    return model + _entry(key_of(bundle), hashlib.sha256(model).hexdigest())


def is_sealed(bundle: Bundle, data: bytes) -> bool:
    """The bytes are a whole copy of this bundle, made by this onnxruntime for this processor and these options."""
    body = memoryview(data)[: max(0, len(data) - _ENTRY_BYTES)]
    return data.endswith(_entry(key_of(bundle), hashlib.sha256(body).hexdigest()))


def key_of(bundle: Bundle) -> str:
    """A digest of everything that decides what onnxruntime makes of a graph."""
    parts = (FORMAT, bundle.digest, installed_onnxruntime(), GRAPH_LEVEL, processor())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@cache
def processor() -> str:
    """The kind of this machine's processors and what they can do: onnxruntime lays weights out by that."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    found = {line for line in lines if line.partition(":")[0].strip() in _OF_PROCESSOR}
    return "\n".join([platform.machine(), *sorted(found)])


class _UnfitError(Exception):
    """A file that must not be loaded, and why."""


def _read_private(path: Path, bundle: Path) -> bytes:
    """The bytes of a regular file that nobody can write to who could not write to the bundle.

    Raises:
        OSError: it cannot be read.
        _UnfitError: it is something else.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise _UnfitError("it is no regular file")
        if found.st_uid not in {0, os.geteuid(), bundle.stat().st_uid}:
            raise _UnfitError("it belongs to somebody else: remove it")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _UnfitError("others can write to it: remove it")
        if found.st_size > MAX_BYTES:
            raise _UnfitError(f"it is larger than {MAX_BYTES} bytes")
        return file.read(MAX_BYTES + 1)


def _say_unused(bundle: Bundle, why: str, level: int = logging.WARNING) -> None:
    about = fields(bundle=bundle.manifest.name, copy=copy_path(bundle.path), why=why)
    _log.log(level, "the optimised copy is not used", extra=about)


# An entry of `metadata_props` as protobuf writes it (onnx.proto: field 14 of ModelProto, strings 1 and 2 of the entry).
# Fields of a message may come in any order, so that one more at its end leaves a whole ONNX file.
_NAME = b"edge_runtime.optimised"
_HEAD = bytes([14 << 3 | 2])
_NAME_FIELD = bytes([1 << 3 | 2, len(_NAME)]) + _NAME


def _entry(key: str, digest: str) -> bytes:
    value = (key + digest).encode()
    inner = _NAME_FIELD + bytes([2 << 3 | 2]) + _varint(len(value)) + value
    return _HEAD + _varint(len(inner)) + inner


def _varint(number: int) -> bytes:
    """Below 2^14 in two bytes, as protobuf writes numbers from 128 on."""
    return bytes([number & 0x7F | 0x80, number >> 7])


_ENTRY_BYTES = len(_entry("0" * _HEX, "0" * _HEX))


def _seals(data: bytes) -> tuple[str | None, str]:
    """The two digests of a seal; None for the first where there is none."""
    entry = data[-_ENTRY_BYTES:]
    words = entry[-2 * _HEX :].decode("ascii", "replace")
    key, digest = words[:_HEX], words[_HEX:]
    return (key, digest) if entry == _entry(key, digest) else (None, "")
