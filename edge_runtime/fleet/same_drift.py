"""Where the same drift shows: the causes that the devices of a fleet report, put together. Pure.

One sensor that is stuck is a matter of that sensor. The same channel with the same cause on most devices is one of the
model, of a batch of sensors, or of the season.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.fleet.table import folded, render

HEADER = ("AT", "DRIFT", "STATE", "DEVICES", "WHICH")
_RANK = {"watch": 1, "alarm": 2}


class DriftCause(msgspec.Struct, frozen=True):
    """One cause, as a device reports it: a channel, an answer, `rate` or `clock`, and the kind of the reason."""

    at: str
    cause: str
    state: str = "alarm"


def read_causes(found: object) -> list[DriftCause]:
    """Those of one device; what is none of ours is left out, since anybody may publish on the topic."""
    causes = []
    for each in found if isinstance(found, list) else ():
        try:
            causes.append(msgspec.convert(each, DriftCause))
        except msgspec.ValidationError:
            continue
    return causes


def same_drift(reports: Sequence[tuple[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """What the devices have in common, the most frequent first.

    Args:
        reports: the name of each device that reports drift of a model, with its report.
    """
    devices: dict[tuple[str, str], dict[str, str]] = {}
    for name, report in reports:
        for each in read_causes(report.get("causes")):
            devices.setdefault((each.at, each.cause), {})[name] = each.state
    found = [
        {
            "at": at,
            "cause": cause,
            "state": max(states.values(), key=lambda state: _RANK.get(state, 0)),
            "devices": sorted(states),
            "of": len(reports),
        }
        for (at, cause), states in devices.items()
    ]
    return sorted(found, key=lambda each: (-len(each["devices"]), -_RANK.get(each["state"], 0), each["at"]))


def drift_lines(total: Mapping[str, Any]) -> list[str]:
    """A table of the causes of one model; nothing where no device reports any."""
    rows = [
        [each["at"], each["cause"], each["state"], f"{len(each['devices'])} of {each['of']}", folded(each["devices"])]
        for each in total["same_drift"]
    ]
    head = f"{total['model']} {total['version']}: where the same drift shows"
    return [head, *render(HEADER, rows).splitlines()] if rows else []
