"""The store of a device, as printed by `models list --json`, and its description in words. Pure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import CommandError
from edge_runtime.fleet.errors import RefusedError

SERVING = ("active", "probation")

Listed = dict[str, Any]


def read_listing(text: str) -> list[Listed]:
    """The JSON of `models list --json`.

    Raises:
        CommandError: it is no such JSON, for example from an old runtime, or after a login greeting.
    """
    try:
        found = msgspec.json.decode(text, type=list[Listed])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(
            f"expected its list of models, found {json.dumps(text[:80])}: does its login print something?"
        ) from error
    return [each for each in found if {"name", "version", "digest", "state"} <= each.keys()]


def serving(listed: Sequence[Listed], name: str) -> Listed | None:
    """The bundle of a name that a device runs now."""
    return next((each for each in listed if each["name"] == name and each["state"] in SERVING), None)


def the_model(listed: Sequence[Listed], name: str | None) -> Listed:
    """The bundle in service of a name, or of the only model.

    Raises:
        RefusedError: there is none, or several and no name.
    """
    running = [each for each in listed if each["state"] in SERVING and name in {None, each["name"]}]
    if len(running) != 1:
        known = ", ".join(each["name"] for each in running) or "none"
        raise RefusedError(f"expected one model, found {len(running)} ({known}): name one with --model")
    return running[0]


class Unwanted(msgspec.Struct, frozen=True):
    """The bundle that a rollback takes devices back from, by version or digest; both None for whatever runs.

    Attributes:
        version: as in its manifest.
        digest: its SHA-256, in hex.
    """

    version: str | None = None
    digest: str | None = None

    def is_run(self, running: Listed) -> bool:
        """A device runs it."""
        by_version = self.version is None or running["version"] == self.version
        return by_version and (self.digest is None or running["digest"] == self.digest)


def to_leave(listed: Sequence[Listed], model: str | None, unwanted: Unwanted) -> Listed | None:
    """The bundle in service that a rollback takes a device back from; None where the device does not run it.

    Raises:
        RefusedError: several models are meant, or nothing is unwanted in particular and there is no model.
    """
    if unwanted == Unwanted():
        return the_model(listed, model)
    running = [each for each in listed if each["state"] in SERVING and unwanted.is_run(each)]
    if not any(model in {None, each["name"]} for each in running):
        return None
    return the_model(running, model)


def in_service(listed: Sequence[Listed]) -> str:
    """Every bundle that a device runs now, for people."""
    return ", ".join(words(each) for each in listed if each["state"] in SERVING) or "nothing"


def unwanted(word: str | None) -> Unwanted:
    """From `--from VERSION|BUNDLE`.

    Raises:
        BundleError: the file is no bundle.
    """
    if word is None:
        return Unwanted()
    if "/" in word or Path(word).is_file():
        from edge_runtime.bundle.open import open_bundle  # noqa: PLC0415 - only for a file

        return Unwanted(digest=open_bundle(Path(word)).digest)
    return Unwanted(version=word)


def words(found: Listed | None) -> str:
    """A bundle of a listing, for people."""
    return "nothing" if found is None else f"{found['name']} {found['version']} ({found['digest'][:12]})"


def details(before: Listed | None, after: Listed | None) -> dict[str, object]:
    """The details of a change, for programs."""
    return {"before": before, "after": after}


def replaced(before: Listed | None, digest: str) -> str:
    """The words for another bundle that was still on probation when this one came; empty without."""
    if before is None or before["state"] != "probation" or before["digest"] == digest:
        return ""
    return f"; it replaces {before['version']} ({before['digest'][:12]}), which was still on probation"
