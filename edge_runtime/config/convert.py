"""A parsed TOML table -> a struct of `config/tables.py`, with every mistake named at its place.

msgspec stops at the first mistake of a struct; here each key is converted separately, so that one run shows all
mistakes. A wrong key keeps its default (or None) in the result and is listed in `Converted.wrong`, so that rules about
other keys can still be checked. This module is independent of the meaning of keys.
"""

import collections.abc
import datetime as dt
import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from edge_runtime.registered import Registry

_BARE_KEY = re.compile(r"^[A-Za-z0-9_-]+$")
_LONGEST_FOUND = 120
_SECRETS = frozenset({"password", "token", "secret", "passphrase"})


class Mistake(msgspec.Struct, frozen=True):
    """One mistake: `place: expected ..., found ...: remedy`."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class Converted(msgspec.Struct, frozen=True):
    """One table after conversion.

    Attributes:
        value: the struct; wrong keys hold their default, or None where they have none.
        place: of the table in the file, such as `source[1] "climate"`; empty for the file itself.
        wrong: keys that are wrong or missing. A rule about one of them is not checked.
        given: keys in the file.
    """

    value: Any
    place: str
    wrong: frozenset[str]
    given: frozenset[str]

    def key(self, name: str) -> str:
        """The place of one key of this table."""
        return f"{self.place}.{name}" if self.place else name


class ConfigConversion:
    """Collects mistakes and tables while a file is converted."""

    def __init__(self, folder: str) -> None:
        """Begins a conversion; relative paths start from `folder`."""
        self._folder = folder
        self.mistakes: list[Mistake] = []
        self.tables: list[Converted] = []

    def table(
        self, struct: type[msgspec.Struct], raw: Mapping[str, Any], place: str, omit: frozenset[str]
    ) -> Converted:
        """Converts one table and all tables in it; `omit` names attributes of the struct that are no keys."""
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct) if field.encode_name not in omit}
        spread = {name: field for name, field in fields.items() if is_spread(struct, name)}
        tag = struct.__struct_config__.tag_field
        known = [*([tag] if tag else []), *fields]
        values: dict[str, Any] = {}
        wrong: set[str] = set()
        for name, field in fields.items():
            where = f"{place}.{name}" if place else name
            if name in spread:
                part = self._spread(field, raw, place)
                values[field.name] = part.value
                wrong |= part.wrong
                at = known.index(name)
                known[at : at + 1] = [part.value.__struct_config__.tag_field, *part.value.__struct_fields__]
                continue
            if name not in raw:
                if field.required:
                    self._add(where, _missing(name, field.type))
                    wrong.add(name)
                    values[field.name] = None
                continue
            good, value = self.value(field.type, raw[name], where)
            if good:
                values[field.name] = value
            else:
                wrong.add(name)
                if field.required:
                    values[field.name] = value  # an array with some good items, or None
        for name in raw:
            if name not in known and not any(self._elsewhere(values[part], raw, name, place) for part in spread):
                self._unknown(place, name, known)
        converted = Converted(struct(**values), place, frozenset(wrong), frozenset(raw))
        self.tables.append(converted)
        return converted

    def _spread(self, field: msgspec.structs.FieldInfo, raw: Mapping[str, Any], place: str) -> Converted:
        """A choice whose keys are in the table that contains it."""
        tag = str(field.type.__struct_config__.tag_field)
        chosen = type(field.default)
        wrong = frozenset[str]()
        if tag in raw:
            found = self._chosen([field.type], raw, place)
            wrong = frozenset([tag]) if found is None else wrong
            chosen = found or chosen
        mine = {name: value for name, value in raw.items() if name in chosen.__struct_fields__}
        part = self.table(chosen, mine, place, frozenset())
        if wrong:
            part = msgspec.structs.replace(part, wrong=part.wrong | wrong)
            self.tables[-1] = part
        return part

    def _elsewhere(self, part: msgspec.Struct, raw: Mapping[str, Any], name: str, place: str) -> bool:
        """Whether a key belongs to another choice; then it is refused, or ignored where it is harmless."""
        field, chosen = part.__struct_config__.tag_field, quote(str(part.__struct_config__.tag))
        registry = part.variants  # type: ignore[attr-defined]  # only a choice with variants is spread
        having = {}
        for word in registry:
            keys = {key.encode_name: key for key in msgspec.structs.fields(registry.load(word))}
            if name in keys:
                having[word] = keys[name]
        if not having:
            return False
        instead = _extra(next(iter(having.values())).type, "elsewhere") if raw[name] else None
        if str(field) in raw and raw[str(field)] != part.__struct_config__.tag:
            instead = None  # the choice is wrong, and has its own message
        if instead == "only":
            only = _either([quote(word) for word in having])
            self._add(f"{place}.{name}", f"expected it only with {field} = {only}, found it with {chosen}: take it out")
        elif instead is not None:
            found = describe(raw[name])
            self._add(f"{place}.{name}", f"expected {instead} with {field} = {chosen}, found {found}: take it out")
        return True

    def value(self, kind: Any, raw: Any, place: str) -> tuple[bool, Any]:
        """Convert one value; the result begins with whether it is good."""
        structs = _structs(kind)
        if structs:
            return self._struct(structs, raw, place)
        item = _item_type(kind)
        if item is not None:
            return self._array(item, raw, place)
        named = _named_type(kind)
        if named is not None:
            return self._named(named, raw, place)
        if isinstance(raw, float) and not math.isfinite(raw):
            self._add(place, f"expected {describe_type(kind)}, found {describe(raw)}: a setting is a finite number")
            return False, None
        try:
            return True, self._resolved(kind, msgspec.convert(raw, kind))
        except (msgspec.ValidationError, OverflowError):
            remedy = _remedy(kind, raw)
            self._add(
                place, f"expected {describe_type(kind)}, found {describe(raw)}" + (f": {remedy}" if remedy else "")
            )
            return False, None

    def _resolved(self, kind: Any, value: Any) -> Any:
        role = path_role(kind)
        if role is None or not isinstance(value, str) or (role == "bundle" and not names_a_file(value)):
            return value
        return os.path.normpath(Path(self._folder, value))

    def _struct(self, structs: list[type[msgspec.Struct]], raw: Any, place: str) -> tuple[bool, Any]:
        short = getattr(structs[0], "short", None)
        if short is not None and isinstance(raw, str):
            raw = {short: raw}
        if not isinstance(raw, Mapping):
            remedy = f": write [{place}] with single brackets" if isinstance(raw, list) and "." not in place else ""
            what = "a table" if short is None else f"a table, or a text that is its {short}"
            self._add(place, f"expected {what}, found {describe(raw)}{remedy}")
            return False, None
        struct = structs[0]
        if len(structs) > 1 or variants(struct):
            chosen = self._chosen(structs, raw, place)
            if chosen is None:
                return False, None
            struct = chosen
        before = len(self.mistakes)
        converted = self.table(struct, raw, place, frozenset())
        # A mistake inside the table is reported there; rules may read the table.
        return len(self.mistakes) == before, converted.value

    def _chosen(
        self, structs: list[type[msgspec.Struct]], raw: Mapping[str, Any], place: str
    ) -> type[msgspec.Struct] | None:
        field = str(structs[0].__struct_config__.tag_field)
        by_tag = variants(structs[0]) or {str(struct.__struct_config__.tag): struct for struct in structs}
        expected = _either([quote(tag) for tag in by_tag])
        if field not in raw:
            self._add(f"{place}.{field}", f"expected {expected}, but the key is missing")
            return None
        tag = raw[field]
        if isinstance(tag, str) and tag in by_tag:
            found: type[msgspec.Struct] = by_tag[tag] if isinstance(by_tag, dict) else by_tag.load(tag)
            return found
        near = nearest(tag, list(by_tag)) if isinstance(tag, str) else None
        hint = f": did you mean {quote(near)}?" if near else ""
        self._add(f"{place}.{field}", f"expected {expected}, found {describe(tag)}{hint}")
        return None

    def _array(self, item: Any, raw: Any, place: str) -> tuple[bool, Any]:
        if not isinstance(raw, list):
            if _structs(item):
                remedy = f": write [[{place}]] with double brackets" if isinstance(raw, Mapping) else ""
                self._add(place, f"expected an array of tables, found {describe(raw)}{remedy}")
            else:
                remedy = f": write [{describe(raw)}]" if isinstance(raw, str) else ""
                self._add(place, f"expected an array, each item {describe_type(item)}, found {describe(raw)}{remedy}")
            return False, None
        results = [self.value(item, each, _item_place(place, index, each)) for index, each in enumerate(raw)]
        # Items are checked one by one: rules get the good values of an array, but no incomplete table.
        enough = all if _structs(item) else any
        return not raw or enough(good for good, _ in results), tuple(value for _, value in results if value is not None)

    def _named(self, item: Any, raw: Any, place: str) -> tuple[bool, Any]:
        """A table whose keys are names that the user has chosen."""
        if not isinstance(raw, Mapping):
            self._add(place, f"expected a table, found {describe(raw)}")
            return False, None
        values: dict[str, Any] = {}
        all_good = True
        for name, each in raw.items():
            if not name:
                self._add(place, "expected names that are not empty, found an empty one")
                all_good = False
                continue
            shown = name if _BARE_KEY.match(name) else quote(name)
            good, values[name] = self.value(item, each, f"{place}.{shown}")
            all_good = all_good and good
        return all_good, values

    def _unknown(self, place: str, name: str, known: list[str]) -> None:
        shown = name if _BARE_KEY.match(name) else quote(name)
        where = f"{place}.{shown}" if place else shown
        near = nearest(name, known)
        if name.lower() in _SECRETS and f"{name.lower()}_file" in known:
            word = name.lower()
            remedy = f"a {word} has no place here: write it into a file of its own and name that in {word}_file"
        elif near:
            remedy = f"did you mean {near}?"
        else:
            remedy = f"known keys are {', '.join(known)}"
        self._add(where, f"unknown key: {remedy}")

    def _add(self, place: str, text: str) -> None:
        self.mistakes.append(Mistake(place, text))


def names_a_file(bundle: str) -> bool:
    """Whether `bundle` is the path of a file, not the name of a model in the model store."""
    return "/" in bundle or bundle.endswith(".onnx")


def path_role(kind: Any) -> str | None:
    """The kind of path in a key (`readable`, `new`, `bundle`), or None."""
    return _extra(kind, "path")


def variants(struct: type[msgspec.Struct]) -> Registry | None:
    """The registered kinds of a table with variants; None for a kind itself."""
    found: Registry | None = getattr(struct, "variants", None)
    return found if found is not None and struct.__struct_config__.tag not in found else None


def is_spread(table: msgspec.Struct | type[msgspec.Struct], name: str) -> bool:
    """Whether a key holds a choice of several tables whose keys are in the same table."""
    struct = table if isinstance(table, type) else type(table)
    kind = next((field.type for field in msgspec.structs.fields(struct) if field.name == name), None)
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and variants(kind) is not None


def _extra(kind: Any, name: str) -> str | None:
    """An annotation of a type, also inside an array or a choice with None."""
    if get_origin(kind) is Annotated:
        for note in kind.__metadata__:
            if isinstance(note, msgspec.Meta) and note.extra is not None and name in note.extra:
                return str(note.extra[name])
        return None
    for each in get_args(kind) if get_origin(kind) is not Literal else ():
        found = _extra(each, name)
        if found is not None:
            return found
    return None


def nearest(word: str, known: Iterator[str] | Mapping[str, Any] | list[str]) -> str | None:
    """The known word that is nearest to `word`, if any is near."""
    import difflib  # noqa: PLC0415 - only for a mistake

    found = difflib.get_close_matches(word[:200].lower(), list(known), n=1, cutoff=0.6)
    return found[0] if found else None


def quote(text: str) -> str:
    """Text as TOML would hold it, on one line."""
    # Unprintable characters could reverse or hide a terminal's text.
    shown = json.dumps(text, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in shown)


def describe(value: Any) -> str:
    """A found value as in a TOML file, short and on one line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quote(value if len(value) <= _LONGEST_FOUND else value[:_LONGEST_FOUND] + "…")
    if isinstance(value, int):
        # Python may refuse to print longer numbers.
        return str(value) if value.bit_length() <= 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return f"an array of {len(value)}"
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return f"the {'time' if isinstance(value, dt.time) else 'date'} {value.isoformat()}"
    return "nothing" if value is None else type(value).__name__


def describe_type(kind: Any) -> str:
    """The expected type of a key in words: `a whole number from 1 to 65535`."""
    return _describe(inspect.type_info(kind))


def _describe(info: inspect.Type) -> str:
    words = "a value"
    if isinstance(info, inspect.Metadata):
        extra = info.extra or {}
        words = str(extra["expected"]) if "expected" in extra else _describe(info.type)
    elif isinstance(info, inspect.UnionType):
        words = _either([_describe(each) for each in info.types if not isinstance(each, inspect.NoneType)])
    elif isinstance(info, inspect.LiteralType):
        words = _either([describe(value) for value in info.values])
    elif isinstance(info, inspect.BoolType):
        words = "true or false"
    elif isinstance(info, inspect.IntType | inspect.FloatType):
        words = ("a whole number" if isinstance(info, inspect.IntType) else "a number") + _range(info)
    elif isinstance(info, inspect.StrType):
        words = "text"
    elif isinstance(info, inspect.VarTupleType):
        words = f"an array, each item {_describe(info.item_type)}"
        if isinstance(info.item_type, inspect.UnionType | inspect.StructType):
            words = "an array of tables"
    elif isinstance(info, inspect.StructType | inspect.DictType):
        words = "a table"
    return words


def _range(info: inspect.IntType | inspect.FloatType) -> str:
    if info.ge is not None and info.le is not None:
        return f" from {info.ge} to {info.le}"
    parts = []
    if info.gt is not None:
        parts.append(f"above {info.gt}")
    if info.ge is not None:
        parts.append(f"of at least {info.ge}")
    if info.le is not None:
        parts.append(f"of at most {info.le}")
    return " " + " and ".join(parts) if parts else ""


def _remedy(kind: Any, raw: Any) -> str | None:
    infos = list(_leaves(inspect.type_info(kind)))
    numeric = any(isinstance(info, inspect.IntType | inspect.FloatType) for info in infos)
    texts = [
        str(v) for info in infos if isinstance(info, inspect.LiteralType) for v in info.values if isinstance(v, str)
    ]
    if isinstance(raw, str):
        numbers = [
            v for info in infos if isinstance(info, inspect.LiteralType) for v in info.values if isinstance(v, int)
        ]
        if raw in {"true", "false"} and any(isinstance(info, inspect.BoolType) for info in infos):
            return "take the quotation marks away"
        if (numeric or numbers) and _is_number(raw):
            return "take the quotation marks away"
        near = nearest(raw, texts) if texts else None
        return f"did you mean {quote(near)}?" if near else None
    if (
        not isinstance(raw, bool)
        and isinstance(raw, int | float)
        and any(isinstance(i, inspect.StrType) for i in infos)
    ):
        return f'put it in quotation marks: "{raw}"' if abs(raw) < 1e15 else None
    return None


def _leaves(info: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(info, inspect.Metadata):
        yield from _leaves(info.type)
    elif isinstance(info, inspect.UnionType):
        for each in info.types:
            yield from _leaves(each)
    else:
        yield info


def _missing(name: str, kind: Any) -> str:
    if _structs(kind):
        return f"expected the table [{name}], found none"
    item = _item_type(kind)
    if item is not None and _structs(item):
        return f"expected at least one [[{name}]], found none"
    return f"expected {describe_type(kind)}, but the key is missing"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _structs(kind: Any) -> list[type[msgspec.Struct]]:
    """The structs in a type, without None; empty when it is no struct."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    if get_origin(kind) in {Union, types.UnionType}:
        return [struct for each in get_args(kind) for struct in _structs(each)]
    return _structs(get_args(kind)[0]) if get_origin(kind) is Annotated else []


def _item_type(kind: Any) -> Any:
    """The item type of `tuple[X, ...]`, or None for other types."""
    if get_origin(kind) is Annotated:
        return _item_type(get_args(kind)[0])
    return get_args(kind)[0] if get_origin(kind) is tuple else None


def _named_type(kind: Any) -> Any:
    """The value type of a table of chosen names, such as `dict[str, float]`; None for other types."""
    if get_origin(kind) is Annotated:
        return _named_type(get_args(kind)[0])
    if get_origin(kind) in {Union, types.UnionType}:
        return next((found for each in get_args(kind) if (found := _named_type(each)) is not None), None)
    return get_args(kind)[1] if get_origin(kind) in {dict, collections.abc.Mapping} else None


def _item_place(place: str, index: int, raw: Any) -> str:
    """`source[1] "climate"`: the number locates the item, the name identifies it for people."""
    name = raw.get("name", raw.get("channel")) if isinstance(raw, Mapping) else None
    return f"{place}[{index}] {describe(name)}" if isinstance(name, str) else f"{place}[{index}]"
