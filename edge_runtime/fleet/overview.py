"""The state of every device: one row for each, also for a device that does not answer. Pure."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.fleet.listing import SERVING, read_listing
from edge_runtime.fleet.table import duration

# All parts in one connection. Each part may fail separately; a marker line separates the parts.
MARK = "--- edge-runtime part ---"
QUESTION = f"""runtime=$1; service=$2; folder=$3; signers=$4
echo '{MARK}'; cat /proc/uptime 2>/dev/null
echo '{MARK}'; cat /sys/class/thermal/thermal_zone0/temp 2>/dev/null
echo '{MARK}'; systemctl is-active "edge-runtime@$service" 2>/dev/null
echo '{MARK}'; "$runtime" --version 2>/dev/null
echo '{MARK}'; "$runtime" status --json 2>/dev/null
echo '{MARK}'; "$runtime" models --store "$folder" --allowed-signers "$signers" list --json
exit 0
"""


class OverviewRow(msgspec.Struct, kw_only=True):
    """One device, as far as it is known.

    Attributes:
        name: of the device.
        reachable: whether it answered.
        why: what is wrong, in one line.
        runtime: the version of its runtime.
        service: the state of its service in systemd.
        models: its store, as `models list --json` has it.
        uptime_s: since its boot.
        temperature_c: of its processor.
        last_prediction: when it last published, in seconds since 1970.
        queued: predictions that wait for its broker.
        accuracy: how right each model is, as the device publishes it, by model.
        drift: how far the input of each model is from its training, by model.
    """

    name: str
    group: str | None = None
    kind: str | None = None
    reachable: bool = False
    why: str = ""
    runtime: str = ""
    service: str = ""
    models: list[dict[str, Any]] = []
    uptime_s: float | None = None
    temperature_c: float | None = None
    last_prediction: float | None = None
    queued: int | None = None
    accuracy: dict[str, Any] = {}
    drift: dict[str, Any] = {}


def fill_from_answer(row: OverviewRow, found: Sequence[str], reason: str) -> None:
    """Fill a row from the parts of an answer to `QUESTION`; `reason` is the last line of stderr."""
    parts = [part.strip() for part in found]
    if len(parts) != 6:
        row.why = reason
        return
    uptime, temperature, row.service, version, status, listed = parts
    row.uptime_s = _number(uptime.split(" ")[0])
    celsius = _number(temperature)
    row.temperature_c = None if celsius is None else celsius / 1000
    row.runtime = version.removeprefix("edge-runtime ")
    _fill_status(row, status)
    if not version:
        row.why = "the runtime is not installed: provision the device first"
    elif listed:
        row.models = read_listing(listed)
    else:
        row.why = reason


def _fill_status(row: OverviewRow, text: str) -> None:
    try:
        documents = msgspec.json.decode(text, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return  # an old runtime, or none runs
    queued = [each["queued"] for each in documents if isinstance(each.get("queued"), int)]
    row.queued = sum(queued) if queued else None
    times = [each["last_prediction"] for each in documents if isinstance(each.get("last_prediction"), int | float)]
    row.last_prediction = max(times) if times else None
    for document in documents:
        fill_figures(row, document, document.get("accuracy"))


def fill_figures(
    row: OverviewRow, health: Mapping[str, Any], accuracy: object, drift: Mapping[str, Any] | None = None
) -> None:
    """Note a device's accuracy and drift, if published; drift from its own documents, or from health."""
    if isinstance(accuracy, Mapping):
        row.accuracy = {**row.accuracy, **accuracy}
    models = health.get("models")
    known = dict(models) if isinstance(models, Mapping) else {}
    found: dict[str, Any] = {name: each.get("drift") for name, each in known.items() if isinstance(each, Mapping)}
    found.update(drift or {})
    for name, document in found.items():
        if isinstance(document, Mapping):
            serving = known[name].get("version", "") if isinstance(known.get(name), Mapping) else ""
            version = serving or str(document.get("version") or "")
            about = {
                "state": document.get("state"), "why": document.get("why"), "version": version,
                "causes": document.get("causes") or [],
            }  # fmt: skip
            row.drift = {**row.drift, str(name): about}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


HEADER = ("DEVICE", "REACHABLE", "MODEL", "VERSION", "STATE", "SERVICE", "UPTIME", "LAST", "QUEUE", "TEMP", "WHY")


def cells(row: OverviewRow, now: float) -> list[list[str]]:
    """The lines of the table for one device: one for each model that serves."""
    serving = [each for each in row.models if each["state"] in {"active", "probation"}] or [{}]
    lines = []
    for model in serving:
        last = "" if row.last_prediction is None else f"{duration(max(0.0, now - row.last_prediction))} ago"
        lines.append(
            [
                row.name,
                "yes" if row.reachable else "no",
                str(model.get("name", "")),
                str(model.get("version", "")),
                str(model.get("state", "")),
                row.service,
                "" if row.uptime_s is None else duration(row.uptime_s),
                last,
                "" if row.queued is None else str(row.queued),
                "" if row.temperature_c is None else f"{row.temperature_c:.0f} C",
                row.why or str(model.get("why", "")) or _went_back(row, model.get("name")),
            ]
        )
    return lines


def _went_back(row: OverviewRow, name: object) -> str:
    """The bundle of a name that this device tried and left, and the reason; `models list` keeps a rejected one."""
    rejected = [each for each in row.models if each["name"] == name and each["state"] == "rejected"]
    return f"went back from {rejected[0]['version']}: {rejected[0].get('why', '')}" if rejected else ""


def totals(rows: Sequence[OverviewRow]) -> str:
    """One line: the number of devices for each running bundle, and without a model."""
    counts: Counter[str] = Counter()
    for row in rows:
        running = [f"{each['name']} {each['version']}" for each in row.models if each["state"] in SERVING]
        counts.update((running or ["no model"]) if row.reachable else ["not reachable"])
    listed = ", ".join(f"{count} {word}" for word, count in counts.most_common())
    return f"{len(rows)} devices: {listed}"


def to_json(rows: list[OverviewRow]) -> str:
    """All rows, for a program."""
    return json.dumps(msgspec.to_builtins(rows), indent=2)
