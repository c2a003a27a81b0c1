"""A prediction -> the metrics of a Sparkplug device, and the name of that device. Pure."""

from typing import Any

from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.values_payload import members_of
from edge_runtime.readings import Prediction
from edge_runtime.sparkplug.wire import Metric

_RESERVED = frozenset("%/+#:")


def device_name(model: str, key: str | None) -> str:
    """The Sparkplug device of a model and key: `MODEL`, or `MODEL:KEY`; no two have the same name."""
    return _escaped(model) if key is None else f"{_escaped(model)}:{_escaped(key)}"


def metrics_of(payload: JsonPayload, prediction: Prediction) -> list[Metric]:
    """One metric for each value: `label`, `score`, `scores/LABEL`, `values/TARGET`, `alarm` and so on, and the `id`."""
    timestamp = round(prediction.time * 1000)
    found: list[Metric] = []
    for member, value in members_of(payload, prediction):
        if member == "time":
            continue  # each metric has it
        if isinstance(value, dict):
            found += [Metric(f"{member}/{name}", float(number), timestamp) for name, number in value.items()]
        else:
            found.append(Metric(member, _plain(member, value), timestamp))
    return found


def _plain(member: str, value: Any) -> bool | int | float | str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if member == "score":
        return float(value)  # also a number that JSON writes without a decimal point
    plain: bool | int | float | str = value
    return plain


def _escaped(text: str) -> str:
    return "".join(f"%{ord(each):02X}" if each in _RESERVED or ord(each) < 0x20 else each for each in text)
