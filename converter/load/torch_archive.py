"""The contents of an exported program of PyTorch (`.pt2`) other than numbers, read without running it.

torch builds sizes by evaluating text, finds the functions that a graph calls by their names, imports modules for the
shapes of its arguments, and unpickles some of the entries. Therefore each text, name and entry must be on a list of
what an exported network needs; everything else is reported and needs `--trust`.

torch and Python find the entries of an archive in different ways, so one file can be two archives. Therefore torch gets
a new archive of the checked entries (`checked_copy`), never the file itself.
"""

import ast
import io
import json
import pickletools
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ENTRIES = re.compile(
    r"(?:[^/]+/)?(?:"
    r"data/weights/(?:weight_\d+|[\w.-]*config\.json)|data/constants/(?:tensor_\d+|[\w.-]*config\.json)"
    r"|data/sample_inputs/[\w.-]+\.pt|models/[\w.-]+\.json|archive_format|archive_version|byteorder|version"
    r"|\.data/\w+|\.format_version|\.storage_alignment"
    r"|serialized_exported_program\.json|serialized_(?:state_dict|constants|example_inputs)\.(?:pt|json))"
)
_TARGETS = re.compile(
    r"torch\.ops\.(?:aten|prims|quantized_decomposed)\.(?!from_file)\w+(?:\.\w+)?"
    r"|torch\.sym_(?:int|float|max|min|not|ite)|torch\._sym_sqrt"
    r"|_operator\.(?:add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(?:ceil|floor|trunc|sqrt)"
)
_FUNCTIONS = frozenset({
    "Symbol", "Integer", "Rational", "Float", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "CleanDiv",
    "ModularIndexing", "IntTrueDiv", "FloatTrueDiv", "ToFloat", "TruncToInt", "FloorToInt", "CeilToInt", "PowByNatural",
    "Eq", "Ne", "Lt", "Le", "Gt", "Ge", "Add", "Mul", "Pow", "Abs", "ceiling", "floor", "Where", "Identity",
})  # fmt: skip
_SYMBOL = re.compile(r"[su]\d+|s\w{0,3}|[A-Za-z]\w{0,30}")
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_LONGEST_TEXT = 2000
# Allowed containers of a graph's arguments. Others import a module that the file names.
_CONTAINERS = frozenset({
    None, "builtins.tuple", "builtins.list", "builtins.dict", "builtins.slice", "collections.OrderedDict",
    "collections.deque", "torch.Size",
})  # fmt: skip
_DEEPEST_TEXT = 8  # depth of JSON inside strings of JSON
# The names in pickles of plain tensors.
_TENSORS = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(?:tensor_v2|parameter)|torch\.nn\.parameter Parameter"
    r"|torch \w+Storage|torch\.storage (?:Untyped|Typed)Storage|torch (?:device|Size|\w*(?:float|int|bool)\d*)"
)


def code_in(path: Path) -> list[str]:
    """Parts of an exported program that could run code, in words; empty where it holds only numbers and a graph.

    Raises:
        zipfile.BadZipFile: it is no archive.
        ValueError: its JSON is invalid.
    """
    with zipfile.ZipFile(path) as archive:
        return sorted(set(_found(archive)))


def checked_copy(path: Path, copy: Path) -> list[str]:
    """As `code_in`; where that is empty, `copy` becomes an archive of the checked entries.

    Raises:
        as `code_in`.
    """
    with zipfile.ZipFile(path) as archive:
        strange = sorted(set(_found(archive)))
        if not strange:
            with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as target:
                for entry in archive.infolist():
                    if entry.is_dir():
                        continue
                    with archive.open(entry) as source, target.open(entry.filename, "w", force_zip64=True) as sink:
                        shutil.copyfileobj(source, sink, 1 << 20)
        return strange


def _found(archive: zipfile.ZipFile) -> Iterator[str]:
    names = archive.namelist()
    if len({name.lower() for name in names}) != len(names):  # torch reads them in every archive
        yield "entries of the same name"
    for name in names:
        if name.endswith("/"):
            continue
        if not _ENTRIES.fullmatch(name):
            yield f"the entry {name[:80]!r}"
        elif name.endswith(".pt"):
            yield from _pickled(archive.read(name))
        elif name.endswith(".json"):
            yield from _in_document(json.loads(archive.read(name)))


def _in_document(document: Any) -> Iterator[str]:
    waiting = [(document, 0)]
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            inner = _inside(item)
            if inner is not None:
                waiting.append((inner, depth + 1))
            if depth > _DEEPEST_TEXT:
                yield "texts within texts"
                return
        elif isinstance(item, list):
            waiting += [(each, depth) for each in item]
        elif isinstance(item, dict):
            yield from _in_object(item)
            waiting += [(each, depth) for each in item.values()]


def _in_object(item: dict[str, Any]) -> Iterator[str]:
    if item.get("use_pickle"):
        yield "pickled weights"
    text, target = item.get("expr_str"), item.get("target")
    if text is not None and not is_plain_arithmetic(text):
        yield f"the size {str(text)[:80]!r}"
    if isinstance(target, str) and "inputs" in item and not _TARGETS.fullmatch(target):
        yield f"a call of {target[:80]!r}"
    if "__enum__" in item:
        yield f"a module to import for {str(item.get('fqn'))[:80]!r}"
    if "children_spec" in item and item.get("type") not in _CONTAINERS:
        yield f"arguments in a {str(item.get('type'))[:80]!r}"


def _inside(text: str) -> Any:
    """The list or object in a text, as torch would read it; None for neither."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None  # torch uses the same function


def is_plain_arithmetic(text: Any) -> bool:
    """Whether a text is arithmetic over symbols and numbers, with listed functions only."""
    if not isinstance(text, str) or len(text) > _LONGEST_TEXT:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    for node in ast.walk(tree):
        if not isinstance(node, _NODES):
            return False
        if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS):
            return False
        if isinstance(node, ast.Name) and (node.id.startswith("_") or not _SYMBOL.fullmatch(node.id)):
            return False
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and not _SYMBOL.fullmatch(node.value):
            return False
    return True


def _pickled(data: bytes) -> Iterator[str]:
    """Names in the pickles of an entry other than those of tensors."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as inner:
            pickles = [inner.read(name) for name in inner.namelist() if name.endswith(".pkl")]
    except zipfile.BadZipFile:
        pickles = [data] if data else []
    for text in pickles:
        try:
            for opcode, argument, _ in pickletools.genops(text):
                if opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                    yield "a pickle of objects"
                elif opcode.name == "GLOBAL" and not _TENSORS.fullmatch(str(argument)):
                    yield f"a pickle that names {str(argument)[:80]!r}"
        except Exception:  # noqa: BLE001 - what cannot be read as a pickle is not handed to one that can
            yield "a damaged pickle"
