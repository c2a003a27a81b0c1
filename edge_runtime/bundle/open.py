"""Open a bundle: from a path to a `Bundle` that is safe to load in onnxruntime, or one line with the reason.

Signature first (`signature.py`, where the caller wants one), then this: size and kind of file, structure
(`onnx_file.py`), operators (`operators.py`), manifest (`manifest.py`), and that the two agree on the normal form. No
session is created here and onnxruntime is not imported. Not guaranteed: that the model ends, stays within the memory,
or answers well; that is the self-test's part (`selftest.py`). The file is read once, but onnxruntime opens it again by
its path: a process that can write there can replace it in between, so a bundle must not lie in an untrusted folder.
"""

import errno
import math
import os
import re
import stat
import sys
from pathlib import Path

import msgspec

from edge_runtime.bundle.manifest import INPUT_NAME, METADATA_KEY, Manifest, Tensor, output_ports, read_manifest
from edge_runtime.bundle.onnx_file import (
    DEFAULT_LIMITS,
    FLOAT,
    INT64,
    TYPE_NAMES,
    Limits,
    OnnxFacts,
    ValueInfo,
    read_onnx,
)
from edge_runtime.bundle.operators import is_allowed
from edge_runtime.errors import BundleError
from edge_runtime.system.hashing import sha256

# The limits of onnxruntime 1.32. An older runtime supports less; the manifest's `requires` states the oldest.
OPSETS = range(7, 29)
OPSETS_ML = range(1, 6)
IR_VERSIONS = range(3, 15)

# https://semver.org, clause 2, 9 and 10.
_VERSION = re.compile(
    r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+[0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*)?",
    re.ASCII,
)
_ITEM_BYTES = {"float32": 4, "int64": 8, "int32": 4, "uint16": 2, "int16": 2, "uint8": 1, "int8": 1}


class Bundle(msgspec.Struct, frozen=True):
    """A bundle that passed every check short of being run. `digest` is the SHA-256 of the file, in hex."""

    path: Path
    digest: str
    size: int
    manifest: Manifest
    facts: OnnxFacts


def open_bundle(path: Path, *, limits: Limits = DEFAULT_LIMITS, digest: str | None = None) -> Bundle:
    """Read and check one bundle.

    Args:
        path: the `.onnx` file.
        limits: of its counts and sizes.
        digest: its SHA-256, where it was checked before; another file is not parsed.

    Raises:
        BundleError: the file is missing, no regular file, too large, truncated, no ONNX, no bundle, or breaks a rule.
    """
    data = read_file(path, limits.max_bytes)
    if digest is not None and sha256(data) != digest:
        raise BundleError(f"{path}: expected the file that was checked, found another: install it again")
    return check_bundle(path, data, limits=limits)


def check_bundle(path: Path, data: bytes, *, place: str | None = None, limits: Limits = DEFAULT_LIMITS) -> Bundle:
    """As `open_bundle`, for bytes in memory; `place` names them in messages, by default the path."""
    try:
        return _check(path, data, place or str(path), limits)
    except BundleError as error:
        message = one_line(str(error))
        if message == str(error):
            raise
        raise BundleError(message) from error


def _check(path: Path, data: bytes, place: str, limits: Limits) -> Bundle:
    facts = read_onnx(data, place, limits)
    _check_versions(facts, place)
    _check_operators(facts, place)
    manifest = _manifest(facts, place)
    _check_requirements(manifest, place)
    _check_normal_form(manifest, facts, place)
    _check_golden(manifest, place)
    return Bundle(path, sha256(data), len(data), manifest, facts)


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`; a FIFO or a device is refused and never waited for.

    Raises:
        BundleError: it is missing, not readable, not a regular file, empty or too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise BundleError(_not_opened(path, error)) from error
    except ValueError as error:  # an embedded null byte
        raise BundleError(f"{str(path)!r}: expected the path of a bundle: {error}") from error
    try:
        data = _read_regular(handle, path, max_bytes)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}: check the disk") from error
    finally:
        os.close(handle)
    if len(data) > max_bytes:
        raise BundleError(f"{path}: expected at most {max_bytes} bytes, found a file that grows: copy it again")
    if not data:
        raise BundleError(f"{path}: expected a bundle, found an empty file: copy it again")
    return data


def _read_regular(handle: int, path: Path, max_bytes: int) -> bytes:
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise BundleError(f"{path}: expected a bundle, found {kind}: name the .onnx file")
    if found.st_size > max_bytes:
        raise BundleError(
            f"{path}: expected at most {max_bytes} bytes, found {found.st_size}: quantise or simplify the model"
        )
    with open(handle, "rb", closefd=False) as file:  # the opened file is the one that was checked
        return file.read(max_bytes + 1)


def version_key(version: str) -> tuple[int, int, int, int, tuple[tuple[int, int, str], ...]] | None:
    """The precedence of a semantic version (clause 11), for comparison; None for other texts.

    A release comes after its pre-releases; numeric identifiers come before words; build metadata does not count.
    """
    match = _VERSION.fullmatch(version) if len(version) <= 128 else None
    if match is None:
        return None
    major, minor, patch, pre = match.groups()
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in pre.split(".")) if pre else ()
    return int(major), int(minor), int(patch), 0 if pre else 1, parts


def _not_opened(path: Path, error: OSError) -> str:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"{path}: expected a bundle, found no such file: check the path"
        case errno.EACCES | errno.EPERM:
            return f"{path}: cannot be read: permission denied: let the runtime's user read it"
        case errno.ELOOP:
            return f"{path}: expected a bundle, found symbolic links in a circle: name the file itself"
        case errno.ENXIO:
            return f"{path}: expected a bundle, found a pipe or a device: name the .onnx file"
        case _:
            return f"{path}: cannot be opened: {error.strerror}"


def _check_versions(facts: OnnxFacts, place: str) -> None:
    if facts.ir_version not in IR_VERSIONS:
        raise BundleError(
            f"{place}: expected IR version {_span(IR_VERSIONS)}, found {facts.ir_version}: convert the model again"
        )
    if "" not in facts.opsets:
        raise BundleError(f"{place}: expected an opset of ai.onnx, found none: convert the model again")
    for domain, allowed in (("", OPSETS), ("ai.onnx.ml", OPSETS_ML)):
        opset = facts.opsets.get(domain)
        if opset is not None and opset not in allowed:
            name = domain or "ai.onnx"
            raise BundleError(
                f"{place}: expected opset {_span(allowed)} of {name}, found {opset}: convert the model again"
            )


def _check_operators(facts: OnnxFacts, place: str) -> None:
    if not facts.nodes:
        raise BundleError(f"{place}: expected a model, found a graph without nodes: convert it again")
    foreign = sorted(f"{domain or 'ai.onnx'}.{op}" for domain, op in facts.operators if not is_allowed(domain, op))
    if foreign:
        shown = ", ".join(foreign[:5]) + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else "")
        raise BundleError(
            f"{place}: expected only operators that bundles may use, found {_short(shown)}: "
            "convert the model again without them"
        )
    missing = sorted({domain for domain, _ in facts.operators} - facts.opsets.keys())
    if missing:
        raise BundleError(f"{place}: expected an opset for every domain in use, found none for {missing[0]}")


def _manifest(facts: OnnxFacts, place: str) -> Manifest:
    text = facts.metadata.get(METADATA_KEY)
    if text is None:
        raise BundleError(
            f"{place}: expected a bundle, found an ONNX file without a manifest (metadata entry {METADATA_KEY}): "
            "make a bundle of it with edge-convert build"
        )
    try:
        manifest = read_manifest(text, place)
    except (RecursionError, ValueError) as error:  # nested too deep for the decoder, or text that is not UTF-8
        raise BundleError(f"{place}: manifest: expected JSON, found {type(error).__name__}: {error}") from error
    if version_key(manifest.version) is None:
        raise BundleError(
            f"{place}: manifest: version: expected a semantic version such as 1.4.0, found {manifest.version[:64]!r}: "
            "set version in the specification and convert again"
        )
    return manifest


def _check_requirements(manifest: Manifest, place: str) -> None:
    wanted = _release(manifest.requires.onnxruntime)
    if wanted is None:
        raise BundleError(
            f"{place}: manifest: requires.onnxruntime: expected a release such as 1.20, "
            f"found {manifest.requires.onnxruntime[:64]!r}"
        )
    installed = installed_onnxruntime()
    if installed is not None and (found := _release(installed)) is not None and found < wanted:
        raise BundleError(
            f"{place}: needs onnxruntime {manifest.requires.onnxruntime} or newer, this is {installed}: "
            "update the runtime or convert again with an older target"
        )


def installed_onnxruntime() -> str | None:
    """The version of onnxruntime, without importing it (0.1 s and 20 MB); None where it is unknown."""
    loaded = sys.modules.get("onnxruntime")
    if loaded is not None:
        return str(getattr(loaded, "__version__", "")) or None
    from importlib import metadata  # noqa: PLC0415 - tens of milliseconds, and onnxruntime is mostly loaded already

    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return None


def _check_normal_form(manifest: Manifest, facts: OnnxFacts, place: str) -> None:
    wanted = {INPUT_NAME: _Port(FLOAT, manifest.input.tensor_shape)}
    for state in manifest.state:
        if state.type != "float32":
            raise BundleError(f"{place}: manifest: state {state.input}: expected float32, found {state.type[:64]}")
        wanted[state.input] = _Port(FLOAT, state.shape)
    if len(wanted) != len(manifest.state) + 1 or len({state.output for state in manifest.state}) != len(manifest.state):
        raise BundleError(f"{place}: manifest: state: expected different names, found one twice")
    _compare("input", wanted, facts.inputs, manifest.batch_free, place=place)

    types = {"float32": FLOAT, "int64": INT64}
    wanted = {name: _Port(types[port.dtype], port.shape) for name, port in output_ports(manifest).items()}
    wanted.update({state.output: _Port(FLOAT, state.shape) for state in manifest.state})
    _compare("output", wanted, facts.outputs, None, place=place)


class _Port(msgspec.Struct, frozen=True):
    """The normal form's requirement for one input or output; `shape` excludes the batch axis."""

    type: int
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{TYPE_NAMES[self.type]} [{', '.join(('N', *map(str, self.shape)))}]"


def _compare(
    kind: str, wanted: dict[str, _Port], found: tuple[ValueInfo, ...], batch_free: bool | None, *, place: str
) -> None:
    """Compare the graph's inputs or outputs with the manifest.

    An input states its whole shape. Of an output, converters often know the rank at best, so only what is
    stated is compared (`batch_free` is None); the self-test sees the rest.
    """
    named = {value.name: value for value in found}
    if len(named) != len(found):
        raise BundleError(f"{place}: expected {kind}s of different names, found one twice: convert it again")
    if named.keys() != wanted.keys():
        raise BundleError(
            f"{place}: expected the {kind}s {_short(', '.join(wanted))}, found {_short(', '.join(named)) or 'none'}: "
            "the manifest does not belong to this graph; convert it again"
        )
    for name, port in wanted.items():
        value = named[name]
        exact = batch_free is not None
        fits = value.type == port.type
        if value.dims is None:
            fits = fits and not exact
        else:
            fits = fits and len(value.dims) == len(port.shape) + 1
            fits = fits and all(
                dim == size or (not exact and not isinstance(dim, int))
                for dim, size in zip(value.dims[1:], port.shape, strict=False)
            )
            fits = fits and (batch_free is not True or not isinstance(value.dims[0], int))
            fits = fits and (batch_free is not False or value.dims[0] == 1 or not isinstance(value.dims[0], int))
        if not fits:
            batch = " with one window at a time (batch_free is false)" if batch_free is False else ""
            raise BundleError(
                f"{place}: expected {kind} {name} to be {port}{batch}, found {_short(str(value))}: "
                "the manifest does not belong to this graph; convert it again"
            )


def _check_golden(manifest: Manifest, place: str) -> None:
    """Check that the golden tensors have the length of their shapes, and belong to this model."""
    golden = manifest.selftest
    if golden is None:
        return
    states = {state.output for state in manifest.state}
    outputs = {name: port.dtype for name, port in output_ports(manifest).items()} | dict.fromkeys(states, "float32")
    rows = golden.input.shape[0] if golden.input.shape else 0
    if golden.input.shape[1:] != manifest.input.tensor_shape or rows < 1:
        raise BundleError(
            f"{place}: manifest: selftest.input: expected one or more windows of "
            f"{list(manifest.input.tensor_shape)}, found {list(golden.input.shape)[:16]}"
        )
    if not golden.outputs:
        raise BundleError(f"{place}: manifest: selftest.outputs: expected golden outputs, found none")
    kind = manifest.input.dtype  # golden inputs may have the type of a frame
    allowed = kind if golden.input.dtype == kind and kind in _ITEM_BYTES else "float32"
    _check_tensor(golden.input, allowed, "selftest.input", place)
    for name, tensor in golden.outputs.items():
        if name not in outputs:
            raise BundleError(
                f"{place}: manifest: selftest.outputs: expected outputs of the model, found {name[:64]!r}"
            )
        if not tensor.shape or tensor.shape[0] != rows:
            raise BundleError(
                f"{place}: manifest: selftest.outputs.{name}: expected {rows} rows, found {tensor.shape[:1]}"
            )
        _check_tensor(tensor, outputs[name], f"selftest.outputs.{name}", place)
    if any(every < 1 for every in golden.every.values()):
        raise BundleError(f"{place}: manifest: selftest.every: expected 1 or more")
    if not all(math.isfinite(limit) and limit >= 0 for limit in (golden.atol, golden.rtol)):
        raise BundleError(f"{place}: manifest: selftest: expected tolerances of 0 or more")


def _check_tensor(tensor: Tensor, dtype: str, what: str, place: str) -> None:
    if tensor.dtype != dtype:
        raise BundleError(f"{place}: manifest: {what}: expected {dtype}, found {tensor.dtype[:64]!r}")
    if len(tensor.shape) > 16 or any(not 0 < size < 2**31 for size in tensor.shape):
        raise BundleError(f"{place}: manifest: {what}: expected positive sizes, found {list(tensor.shape)[:16]}")
    expected = (math.prod(tensor.shape) * _ITEM_BYTES[dtype] + 2) // 3 * 4  # base64 with padding
    if len(tensor.data) != expected:
        raise BundleError(f"{place}: manifest: {what}: expected {expected} characters, found {len(tensor.data)}")


def _release(text: str) -> tuple[int, ...] | None:
    """The numeric part of a release: 1.20 -> (1, 20); a suffix such as `.dev1` or `+cpu` does not count."""
    match = re.match(r"\d{1,6}(\.\d{1,6}){0,3}", text, re.ASCII)
    return tuple(int(part) for part in match[0].split(".")) if match else None


def _span(allowed: range) -> str:
    return f"{allowed.start} to {allowed.stop - 1}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "..."


def one_line(text: str) -> str:
    """Text that quotes an unchecked file, made fit for one line of a terminal or a log."""
    line = "".join(char if char.isprintable() else "?" for char in text.replace("\n", "; "))
    return line if len(line) <= 800 else line[:800] + "..."
