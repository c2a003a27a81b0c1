"""Sparkplug B payloads as others read them: Google's protobuf over the published definition, and npm's decoder.

The definition is that of Eclipse Tahu's `sparkplug_b.proto`, as far as an edge node of ours uses it, with its numbers
and types. `sparkplug-payload` of npm is used where it is installed: `make clients` does it where there is an `npm`.
"""

import base64
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, unknown_fields

from tests.support.waiting import patient

ROOT = Path(__file__).resolve().parents[2]
_TYPES = {"string": 9, "uint64": 4, "uint32": 13, "bool": 8, "float": 2, "double": 1, "bytes": 12}
_METRIC = {
    "name": (1, "string"), "alias": (2, "uint64"), "timestamp": (3, "uint64"), "datatype": (4, "uint32"),
    "is_historical": (5, "bool"), "is_transient": (6, "bool"), "is_null": (7, "bool"),
    "int_value": (10, "uint32"), "long_value": (11, "uint64"), "float_value": (12, "float"),
    "double_value": (13, "double"), "boolean_value": (14, "bool"), "string_value": (15, "string"),
    "bytes_value": (16, "bytes"),
}  # fmt: skip
_SCRIPT = """
const { get } = require('sparkplug-payload');
const reader = get('spBv1.0');
const lines = require('fs').readFileSync(0, 'utf8').split('\\n').filter((line) => line);
for (const line of lines) {
  const found = reader.decodePayload(Buffer.from(line, 'base64'));
  const isLong = (value) => value && value.constructor && value.constructor.name === 'Long';
  const plain = (key, value) => (isLong(value) ? Number(value) : value);
  console.log(JSON.stringify(found, plain));
}
"""


@cache
def payload_class() -> Any:
    """The class of a payload."""
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug_b.proto", package="org.eclipse.tahu.protobuf")
    file.syntax = "proto2"
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    for name, (number, kind) in _METRIC.items():
        metric.field.add(name=name, number=number, type=_TYPES[kind], label=1)
    payload.field.add(name="timestamp", number=1, type=_TYPES["uint64"], label=1)
    where = ".org.eclipse.tahu.protobuf.Payload.Metric"
    payload.field.add(name="metrics", number=2, type=11, label=3, type_name=where)
    payload.field.add(name="seq", number=3, type=_TYPES["uint64"], label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("org.eclipse.tahu.protobuf.Payload"))


def read(payload: bytes) -> dict[str, Any]:
    """`seq`, `timestamp` and `metrics` by name, each with its value, type, time and whether it is historical.

    Raises:
        google.protobuf.message.DecodeError: it is no payload.
    """
    found = payload_class()()
    found.ParseFromString(payload)
    assert len(unknown_fields.UnknownFieldSet(found)) == 0
    return {
        "seq": found.seq if found.HasField("seq") else None,
        "timestamp": found.timestamp,
        "metrics": {
            each.name: {
                "value": _value(each),
                "datatype": each.datatype,
                "timestamp": each.timestamp,
                "historical": each.is_historical,
            }
            for each in found.metrics
        },
    }


def values(payload: bytes) -> dict[str, Any]:
    """The metrics of a payload and their values."""
    return {name: each["value"] for name, each in read(payload)["metrics"].items()}


def command(name: str, *, value: bool) -> bytes:
    """A command as a host sends it."""
    document = {"metrics": [{"name": name, "datatype": 11, "boolean_value": value}], "timestamp": 5}
    found: bytes = json_format.ParseDict(document, payload_class()()).SerializeToString()
    return found


def _value(metric: Any) -> Any:
    (name,) = [field.name for field, _ in metric.ListFields() if field.name.endswith("_value")]
    return getattr(metric, name)


def npm_modules() -> Path | None:
    """Where `sparkplug-payload` of npm is installed; None where it is not, or there is no Node."""
    folder = Path(os.environ.get("EDGE_SPARKPLUG_MODULES", ROOT / ".venv" / "sparkplug" / "node_modules"))
    return folder if shutil.which("node") and (folder / "sparkplug-payload").is_dir() else None


def read_by_npm(payloads: list[bytes]) -> list[dict[str, Any]]:
    """What `sparkplug-payload` makes of them."""
    modules = npm_modules()
    assert modules is not None
    given = "\n".join(base64.b64encode(each).decode() for each in payloads)
    done = subprocess.run(
        ["node", "-e", _SCRIPT],
        input=given,
        env={"NODE_PATH": str(modules), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=patient(60),
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
