"""Names of labels in recordings against those of a bundle, for `predict --label`, `build` and `compare`. Pure.

A recording may name the bundle's labels or the model's own classes (`output.classes`), as text, numbers or truth
values. One decision holds for all names; where both fit and mean different things, the names are refused.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from edge_runtime.errors import CommandError


def places_of(
    names: Iterable[str], labels: Sequence[str], classes: Sequence[str], place: str, *, some_strange: bool = False
) -> dict[str, int]:
    """The position of the label of each name.

    Args:
        names: as written in the recordings.
        labels: of the bundle.
        classes: the model's own names of them; empty where they are the same.
        place: begins every message.
        some_strange: whether unknown names may be left out, if others are known.

    Raises:
        CommandError: names are unknown, of both kinds, or ambiguous.
    """
    every = sorted(set(names))
    classes = classes or labels
    by_label, by_class = spoken_in(every, labels), spoken_in(every, classes)
    known = [name for name in every if name in by_label or name in by_class]
    strange = [name for name in every if name not in known]
    if strange and not (some_strange and known):
        own = f" (or the model's classes {', '.join(classes)})" if tuple(classes) != tuple(labels) else ""
        raise CommandError(
            f"{place}: labels: expected {', '.join(labels)}{own}, found {', '.join(map(repr, strange[:5]))}"
            f"{' and others' if len(strange) > 5 else ''}: the data and the model disagree"
        )
    all_labels, all_classes = all(name in by_label for name in known), all(name in by_class for name in known)
    if all_labels and all_classes and any(by_label[name] != by_class[name] for name in known):
        name = next(name for name in known if by_label[name] != by_class[name])
        raise CommandError(
            f"{place}: labels: {name!r} is a label of the bundle and, meaning another one, a class of the model: "
            "expected names that only one of them has: rename the labels of the specification, or those of the data"
        )
    if not all_labels and not all_classes:
        raise CommandError(
            f"{place}: labels: expected the labels {', '.join(labels)}, or the model's classes {', '.join(classes)}, "
            "found some of both: write one kind throughout"
        )
    return by_label if all_labels else by_class


def spoken_in(names: Iterable[str], known: Sequence[str]) -> dict[str, int]:
    """The position of each known name: by its text, else by the number or truth value in it."""
    places = {name: index for index, name in enumerate(known)}
    found = {name: next((places[form] for form in _forms(name) if form in places), None) for name in set(names)}
    return {name: place for name, place in found.items() if place is not None}


def _forms(name: str) -> Iterator[str]:
    yield name
    text = name.strip()
    yield text
    if text.lower() in ("true", "false"):
        yield text.capitalize()
        yield text.lower()
    with contextlib.suppress(ValueError, OverflowError):
        number = float(text)
        yield str(int(number)) if number.is_integer() else str(number)
