"""Loaders: one framework a file, all meeting in `SourceModel`. `open_model` looks at the bytes to find the right one.

A file is judged by its content first: a pickle is a pickle whatever it is called, and is refused before a byte
of it is unpickled unless the user trusts it.
"""

import io
import pickletools
import re
import zipfile
from pathlib import Path

from converter.load.source import SourceModel
from converter.spec import Spec
from edge_runtime.errors import CommandError

_PICKLE_SUFFIXES = {".pkl", ".pickle", ".joblib", ".p"}
# How joblib's compressed dumps begin: zlib, gzip, bzip2, xz, lzma, and lz4 frames.
_COMPRESSED = (
    b"\x78\x01",
    b"\x78\x5e",
    b"\x78\x9c",
    b"\x78\xda",
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x5d\x00\x00",
    b"\x04\x22\x4d\x18",
)


def open_model(path: Path, spec: Spec, trust: bool) -> SourceModel:
    """Load a trained model of any framework.

    Args:
        path: the file, or the folder of a SavedModel.
        spec: the specification, for what the file leaves open.
        trust: whether code inside the file may run.

    Raises:
        CommandError: it cannot be loaded; the text says why and what to do.
    """
    if not path.exists() and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", str(path)):
        from converter.load import torch  # noqa: PLC0415

        return torch.load_function(str(path), spec, trust)
    if path.is_dir() or path.name == "saved_model.pb":
        from converter.load import savedmodel  # noqa: PLC0415

        return savedmodel.load(_folder_of(path, savedmodel.PROGRAM), spec, trust)
    kind = sniff(path)
    if kind in ("exported program", "TorchScript"):
        from converter.load import torch  # noqa: PLC0415

        load = torch.load_program if kind == "exported program" else torch.load_script
        return load(path, spec, trust)
    if kind in ("pickle", "skops"):
        from converter.load import sklearn  # noqa: PLC0415

        return sklearn.load(path, kind, trust)
    if kind == "onnx":
        from converter.load import onnx  # noqa: PLC0415

        return onnx.load(path, spec)
    if kind == "xgboost":
        from converter.load import xgboost  # noqa: PLC0415

        return xgboost.load(path)
    if kind == "keras":
        from converter.load import keras  # noqa: PLC0415

        return keras.load(path, spec, trust)
    if kind == "catboost":
        from converter.load import catboost  # noqa: PLC0415

        return catboost.load(path, spec)
    if kind == "tflite":
        from converter.load import tflite  # noqa: PLC0415

        return tflite.load(path, spec)
    if kind == "lightgbm":
        from converter.load import lightgbm  # noqa: PLC0415

        return lightgbm.load(path)
    raise CommandError(
        f"{path}: expected a model (skops, ONNX, XGBoost, LightGBM, CatBoost, TFLite, PyTorch, Keras, "
        f"TensorFlow's SavedModel; pickle and joblib with --trust), found {kind}"
    )


def _folder_of(path: Path, program: str) -> Path:
    """The SavedModel that a path means: the folder, or the program inside it."""
    folder = path if path.is_dir() else path.parent
    if not (folder / program).is_file():
        raise CommandError(
            f"{path}: expected a model file, or a SavedModel of TensorFlow, found a folder without {program}"
            if path.is_dir()
            else f"{path}: expected a model file, found no such file"
        )
    return folder


def sniff(path: Path) -> str:
    """What a file is, by its first bytes, and by its suffix only where these leave it open."""
    try:
        with path.open("rb") as file:
            head = file.read(65536)
    except FileNotFoundError as error:
        raise CommandError(f"{path}: expected a model file, found no such file") from error
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise CommandError(f"{path}: expected a model, found an empty file")
    suffix = path.suffix.lower()
    if head.startswith(b"PK"):
        return _sniff_zip(path)
    if head.startswith(b"\x89HDF"):  # what may stand behind it, such as a zip, is not looked at
        return "keras"
    if suffix in _PICKLE_SUFFIXES or head.startswith(_COMPRESSED) or is_pickle(head):
        return "pickle"
    if suffix == ".skops":
        raise CommandError(f"{path}: expected a skops file, found no zip archive: it is truncated or something else")
    if head.startswith(b"CBM1"):
        return "catboost"
    if head[4:8] == b"TFL3" or suffix == ".tflite":
        return "tflite"
    if head.startswith((b"tree\n", b"tree\r\n")):
        return "lightgbm"
    if (head.startswith(b"{") and (b'"learner"' in head or suffix == ".ubj")) or head.startswith(
        b"{L\0\0\0\0\0\0\0\x07learner"
    ):
        return "xgboost"
    if suffix == ".onnx" or head[:1] == b"\x08":  # the field `ir_version`, which every ONNX file begins with
        return "onnx"
    return f"a file that no loader knows (suffix {suffix or 'none'})"


def is_pickle(head: bytes) -> bool:
    """Whether bytes are the beginning of a pickle of any protocol; nothing of it is executed."""
    if head[:1] == b"\x80" and len(head) > 1 and head[1] <= 5:
        return True
    if not head[:1] or head[:1] in b"\x08{":
        return False
    count = 0
    try:
        for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
            count += 1
            if opcode.name == "STOP":
                return count > 1
            if opcode.name in ("GLOBAL", "INST", "REDUCE"):
                return True
    except Exception:  # noqa: BLE001 - whatever it stumbles over, these bytes are no pickle
        return False
    return False


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise CommandError(f"{path}: expected a whole archive, found a damaged or truncated one: {error}") from error
    if "schema.json" in names:
        return "skops"
    if "model.weights.h5" in names and "config.json" in names:
        return "keras"
    inner = {name.partition("/")[2] for name in names}
    if {"models/model.json", "archive_format"} & inner or "serialized_exported_program.json" in names:
        return "exported program"
    if "data.pkl" in inner:
        if any(name.startswith("code/") for name in inner):
            return "TorchScript"
        raise CommandError(
            f"{path}: expected a model, found PyTorch weights without one: "
            "save it with torch.export.save or torch.jit.save instead"
        )
    return "an archive that no loader knows"
