"""Paths of values in a document: `a.b[0].c`, `a."b.c"`, `.` for the whole, `$.a` from the document. Pure.

Guarantee: a path finds exactly the value that it names, or none; `find` never raises, whatever the document. Weak
point: there is no search, so that a value which changes its place has no path.
"""

import re
from typing import Any

import msgspec

_BARE = r"[^\s.\[\]\"$]+"
_STEP = re.compile(rf'(?P<dot>\.?)(?:(?P<bare>{_BARE})|"(?P<quoted>(?:[^"\\]|\\["\\])*)")|\[(?P<item>[0-9]{{1,9}})\]')
_SHOWN = 60


class PathError(ValueError):
    """A text is not a valid path; the message states the expected and the found text."""


class ValuePath(msgspec.Struct, frozen=True):
    """One place.

    Attributes:
        text: as written by the user.
        steps: members by name, and items of arrays by number.
        from_document: whether it starts at the document instead of one reading of its `rows`.
        literal: a member whose name is the whole text takes precedence, as in device files without a mapping.
    """

    text: str
    steps: tuple[str | int, ...]
    from_document: bool = False
    literal: bool = False

    def find(self, item: Any, document: Any) -> Any:
        """The value at the path; None if there is none."""
        value = document if self.from_document else item
        if self.literal and type(value) is dict and self.text in value:
            return value[self.text]
        for step in self.steps:
            if type(step) is str:
                if type(value) is not dict:
                    return None
                value = value.get(step)
            else:
                if type(value) is not list or step >= len(value):  # type: ignore[operator]  # a number, as above
                    return None
                value = value[step]  # type: ignore[index]
        return value

    def explain(self, item: Any, document: Any) -> str:
        """The step of the path that is missing, and the value found instead."""
        value = document if self.from_document else item
        for index, step in enumerate(self.steps):
            within = f" in `{write_path(self.steps[:index])}`" if index else ""
            if type(step) is str:
                if type(value) is not dict:
                    return f"no `{self.text}`: expected an object{within}, found {kind_of(value)}"
                if step not in value:
                    return f"no `{self.text}`: no member `{step}`{within}, found {_some_names(value)}"
                value = value[step]
            else:
                if type(value) is not list:
                    return f"no `{self.text}`: expected an array{within}, found {kind_of(value)}"
                if step >= len(value):  # type: ignore[operator]
                    return f"no `{self.text}`: expected more than {step} items{within}, found {len(value)}"
                value = value[step]  # type: ignore[index]
        return f"no `{self.text}`, found {kind_of(value)}"


def parse_path(text: str) -> ValuePath:
    """Parse the text of a path.

    Raises:
        PathError: it is not valid.
    """
    rest, from_document = text, False
    if text == "$" or text.startswith(("$.", "$[")):
        rest, from_document = text[1:], True
    if rest in {".", ""} and text:
        return ValuePath(text, (), from_document)
    steps: list[str | int] = []
    at = 0
    while at < len(rest):
        found = _STEP.match(rest, at)
        dotted = found is not None and bool(found["dot"])
        is_first = at == 0 and not from_document
        if found is None or (found["item"] is None and dotted == is_first):
            shown = text[:_SHOWN]
            raise PathError(
                f"expected a path such as sensor.values[0] or sensor.\"air temp\", found '{shown}': a member with a "
                "dot, a blank, a bracket or a quotation mark stands in quotation marks"
            )
        if found["item"] is not None:
            steps.append(int(found["item"]))
        elif found["bare"] is not None:
            steps.append(found["bare"])
        else:
            steps.append(re.sub(r"\\(.)", r"\1", found["quoted"]))
        at = found.end()
    if not steps:
        raise PathError("expected a path such as sensor.values[0], found an empty text")
    return ValuePath(text, tuple(steps), from_document)


def member(name: str) -> ValuePath:
    """The path of the member of this name, whatever characters it contains."""
    return ValuePath(name, (name,))


def write_path(steps: tuple[str | int, ...]) -> str:
    """The text of some steps."""
    written = ""
    for step in steps:
        if type(step) is int:
            written += f"[{step}]"
        else:
            name = str(step)
            shown = name if re.fullmatch(_BARE, name) else '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
            written += f".{shown}" if written else shown
    return written


_KINDS = {str: "text", bool: "true or false", list: "an array", dict: "an object", type(None): "nothing"}
_MOST_NAMES = 5


def kind_of(value: Any) -> str:
    """The JSON name of a value's type."""
    return _KINDS.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _some_names(value: dict[Any, Any]) -> str:
    names = [f"`{str(name)[:_SHOWN]}`" for name in list(value)[:_MOST_NAMES]]
    return (", ".join(names) + (", …" if len(value) > _MOST_NAMES else "")) or "no member"
