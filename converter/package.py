"""The final model and its manifest -> one file, tested in a fresh process before it gets its name.

The write is atomic: the file is written beside its destination, tested, signed, synchronised and then renamed. Equal
inputs give equal bytes; the conversion time is `SOURCE_DATE_EPOCH` where that is set.
"""

import base64
import contextlib
import datetime as dt
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from converter import signing, trial
from converter.graph.build import opset_of, requirement, serialize
from converter.load.source import Answer, SourceModel
from converter.named_answers import rows_to_judge
from converter.plan import BundlePlan
from converter.reference import BundleReference
from converter.session import run, session_of
from edge_runtime.bundle.golden import sampled
from edge_runtime.bundle.manifest import (
    METADATA_KEY,
    Manifest,
    Output,
    Requires,
    SelfTest,
    Source,
    State,
    Tensor,
    Uncertainty,
    write_manifest,
)
from edge_runtime.errors import CommandError
from edge_runtime.readings import Floats

_MOST_GOLDEN_ROWS, _FEW_GOLDEN_ROWS = 8, 3
_GOLDEN_SHARE = 16  # golden inputs take at most this share of the graph's bytes, or one row
_GOLDEN_BYTES = 512
_GOLDEN_OUTPUT_BYTES = 4096  # of one output of one row; the self-test stores a sample of a larger one
_INVARIANCE_BATCHES = (2, 3, 7, 32)
_INVARIANCE_ROWS = 64
_TRIAL_SECONDS = 300


def golden_rows(answer: Answer, windows: Floats, most: int) -> NDArray[np.int64]:
    """Rows for the self-test: one of each label, and at least a few.

    Args:
        answer: what the model answers to the windows.
        windows: rows to take from.
        most: the largest number of rows.
    """
    labels = 0 if answer.label is None else len(np.unique(answer.label))
    wanted = max(_FEW_GOLDEN_ROWS, min(labels, _MOST_GOLDEN_ROWS))
    count = min(len(windows), wanted, max(1, most))
    if answer.labels is not None and answer.scores is not None:  # without rows whose label rounding decides
        margin = np.abs(answer.scores - 0.5).min(axis=1)
        clear = np.sort(np.argsort(-margin, kind="stable")[: max(count, len(windows) // 2)])
        return np.asarray(clear[np.unique(np.linspace(0, len(clear) - 1, count).astype(np.int64))], dtype=np.int64)
    if answer.label is None:
        return np.unique(np.linspace(0, len(windows) - 1, count).astype(np.int64))
    scores = answer.scores if answer.scores is not None else np.zeros((len(windows), 2), np.float32)
    margin = np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2]
    by_label = [np.flatnonzero(answer.label == label) for label in np.unique(answer.label)]
    by_label = [rows[np.argsort(margin[rows], kind="stable")] for rows in by_label]
    # The median row of its label: neither a tie, which another processor may round otherwise, nor a score of 0 or 1.
    picked = [int(rows[len(rows) // 2]) for rows in by_label[:count]]
    rest = np.setdiff1d(np.arange(len(windows)), picked)
    picked += rest[: count - len(picked)].tolist()
    return np.array(sorted(picked), dtype=np.int64)


def is_batch_invariant(model: bytes, windows: Floats, states: dict[str, NDArray[Any]]) -> bool:
    """Whether answers are the same to the last bit for every batch size; measured, not proven."""
    session = session_of(model)
    alone = run(session, windows[:1], 1, states).tensors()
    numbers = sum(part.size for part in alone.values())
    some = windows[: rows_to_judge(numbers, _INVARIANCE_ROWS)]
    alone = run(session, some, 1, states).tensors()
    for batch in (*_INVARIANCE_BATCHES, len(some)):
        together = run(session, some, batch, states).tensors()
        if any(together[name].tobytes() != part.tobytes() for name, part in alone.items()):
            return False
    return True


def self_test(
    model: bytes,
    windows: Floats,
    answer: Answer,
    states: dict[str, NDArray[Any]],
    *,
    invariant: bool,
    rough: bool,
    kind: str = "float32",
) -> SelfTest:
    """Golden inputs and this machine's answers to them.

    Args:
        model: the final model.
        windows: evaluation rows.
        answer: its answers to them.
        states: of a recurrent model, at the start of a stream.
        invariant: whether the batch size makes no difference; otherwise rows run one by one.
        rough: whether the model is quantised, so that other processors may differ by some steps.
        kind: the type of a device's values; whole numbers are stored as such.
    """
    kind = kind if np.dtype(kind).itemsize <= 4 else "float32"  # stores the same numbers in fewer bytes
    item = np.dtype(kind).itemsize
    most = max(_GOLDEN_BYTES, len(model) // _GOLDEN_SHARE) // max(1, int(np.prod(windows.shape[1:])) * item)
    numbers = max(part.nbytes // max(1, len(part)) for part in answer.tensors().values())
    if numbers > _GOLDEN_OUTPUT_BYTES:
        most = 1
    rows = windows[golden_rows(answer, windows, most)]
    with np.errstate(invalid="ignore"):
        kept = rows.astype(kind)
    if not np.array_equal(kept.astype(np.float32), rows):
        kept = rows
    outputs = run(session_of(model), rows, len(rows) if invariant else 1, states).tensors()
    every = {name: step for name, part in outputs.items() if (step := _every(part)) > 1}
    golden = {name: _tensor(sampled(part, every.get(name, 1))) for name, part in outputs.items()}
    spread = max(
        (float(np.abs(part).max(initial=0.0)) for name, part in outputs.items() if name not in ("label", "labels")),
        default=1.0,
    )
    share = 2e-2 if rough else 1e-5
    atol = share * max(spread, 1e-6)
    atols: dict[str, float] = {}
    if answer.named is not None:
        atols = {
            name: float(f"{share * max(float(np.abs(part).max(initial=0.0)), 1e-6):.3g}")
            for name, part in outputs.items() if part.dtype == np.float32
        }  # fmt: skip
    return SelfTest(
        _tensor(kept), golden, atol=float(f"{atol:.3g}"), rtol=1e-3, label_mismatches=int(rough and len(rows) > 3),
        every=every, atols=atols,
    )  # fmt: skip


def _every(part: NDArray[Any]) -> int:
    """The stride of the sample of a large output: odd, so that every column is hit over the rows."""
    numbers = part[0].size
    most = _GOLDEN_OUTPUT_BYTES // part.itemsize
    return 1 if numbers <= most else -(-numbers // most) | 1


def _tensor(array: NDArray[Any]) -> Tensor:
    plain = np.ascontiguousarray(array)
    data = base64.b64encode(plain.astype(plain.dtype.newbyteorder("<")).tobytes()).decode()
    return Tensor(shape=tuple(plain.shape), dtype=str(plain.dtype), data=data)


def make_manifest(
    plan: BundlePlan,
    source: SourceModel,
    file: Path,
    model: onnx.ModelProto,
    *,
    selftest: SelfTest,
    reference: BundleReference,
    quantization: dict[str, Any],
    batch_invariant: bool,
    target_device: str | None,
    batch_free: bool = True,
    states: tuple[State, ...] = (),
    recordings: Sequence[Path] = (),
    uncertainty: Uncertainty | None = None,
) -> Manifest:
    """The manifest of a bundle."""
    opset = opset_of(model)
    ml = [entry.version for entry in model.opset_import if entry.domain == "ai.onnx.ml"]
    return Manifest(
        name=plan.name,
        version=plan.version,
        task=plan.task,
        input=plan.input,
        output=Output(
            labels=plan.labels,
            classes=plan.classes,
            targets=plan.targets,
            threshold=plan.threshold,
            tensors=plan.tensors,
            detections=plan.detections,
        ),
        reference=reference.channels,
        score_reference=reference.scores,
        drift=reference.drift,
        uncertainty=uncertainty,
        quantization=quantization,
        state=states,
        selftest=selftest,
        source=Source(
            framework=source.framework,
            version=source.version,
            digest=_digest(file),
            file=file.name,
            converted=_now(),
            converter=_own_version(),
            data=tuple(digest for path in recordings if (digest := _digest(path))),
        ),
        requires=Requires(
            onnxruntime=requirement(opset), opset=opset, opset_ml=ml[0] if ml else None, ir_version=model.ir_version
        ),
        batch_invariant=batch_invariant,
        batch_free=batch_free,
        target_device=target_device,
    )


def _digest(source: Path) -> str:
    """SHA-256 of a file; of a folder, over the names and digests of its files; empty for a `module:function`."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file())
        lines = [f"{_digest(path)}  {path.relative_to(source).as_posix()}\n" for path in files]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    return hashlib.sha256(source.read_bytes()).hexdigest() if source.is_file() else ""


def _now() -> str:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = dt.datetime.fromtimestamp(int(epoch), dt.UTC) if epoch else dt.datetime.now(dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise CommandError(f"SOURCE_DATE_EPOCH: expected seconds since 1970, found {epoch!r}") from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _own_version() -> str:
    try:
        return metadata.version("edge-inference-runtime")
    except metadata.PackageNotFoundError:
        return "unreleased"


def bundle_bytes(model: onnx.ModelProto, manifest: Manifest) -> bytes:
    """The whole file."""
    final = onnx.ModelProto()
    final.CopyFrom(model)
    del final.metadata_props[:]
    onnx.helper.set_model_props(final, {METADATA_KEY: write_manifest(manifest)})
    return serialize(final)


def write_bundle(data: bytes, out: Path, key: Path | None = None) -> int:
    """Write a bundle, and its signature if there is a key.

    Returns:
        the peak memory of the process that tested it, in bytes.

    Raises:
        CommandError: it cannot be written or signed, or fails its test; then no file is left behind.
    """
    signature = out.with_name(out.name + ".sig")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent)
    except OSError as error:
        raise CommandError(f"{out}: cannot be written: {error.strerror}") from error
    part = Path(name)
    part_signature = part.with_name(part.name + ".sig")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        peak_bytes = _try(part)
        if key is not None:
            signing.sign(part, key)
            part_signature.replace(signature)
        signing.remove_release(out)  # it belonged to the file that was here before
        part.replace(out)
        if key is not None:
            signing.sign_release(out, key)
        else:
            signature.unlink(missing_ok=True)  # it belonged to the file that was here before
        _flush_folder(out.parent)
    except OSError as error:
        raise CommandError(f"{out}: cannot be written: {error.strerror}") from error
    finally:
        for left in (part, part_signature):
            with contextlib.suppress(OSError):
                left.unlink(missing_ok=True)
    return peak_bytes


def _try(part: Path) -> int:
    root = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            [sys.executable, trial.__file__, str(part)],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=_TRIAL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(
            f"the bundle did not answer its golden rows within {_TRIAL_SECONDS} s; none was written"
        ) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        why = lines[-1] if lines else f"the process ended with {done.returncode}"
        raise CommandError(f"the bundle failed its trial in a fresh process, none was written: {why}")
    return int(done.stdout)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
