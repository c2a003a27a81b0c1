"""What subscribers receive, as JSON Schema: `python -m tests.support.payload_schemas` writes `docs/schemas/`.

The schemas are written here by hand, so that a change of the code shows as a failing test and not as a changed schema;
their examples are made by the code. Every object is closed: a member that no schema names fails.
"""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.support.installed import ROOT
from tests.support.subscriber import Message

FOLDER = ROOT / "docs" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SOME_TEXT: Schema = {"type": "string", "minLength": 1}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
BOOLEAN: Schema = {"type": "boolean"}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
DIGEST: Schema = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
TIME: Schema = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"}


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def members(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these members and no others."""
    optional = optional or {}
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def by_name(schema: Schema) -> Schema:
    """An object whose members are named by the user or by a reason."""
    return {"type": "object", "additionalProperties": schema}


INTERVAL: Schema = {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2}
REASONS = by_name(COUNT)
QUANTILES = members({}, {"p50": NUMBER, "p99": NUMBER})
DIFFERENCES = members({}, {"mean": NUMBER, "p50": NUMBER, "p90": NUMBER, "p99": NUMBER, "max": NUMBER})

PREDICTION_HEAD: Schema = {
    "id": {**SOME_TEXT, "description": "the same for a prediction that is delivered twice, and for no other"},
    "seq": COUNT,
    "device": SOME_TEXT,
    "model": SOME_TEXT,
    "version": SOME_TEXT,
    "source": SOME_TEXT,
    "key": {**or_null(SOME_TEXT), "description": "the stream; null where the source has one"},
    "time": {**TIME, "description": "of the reading that completed the window, in UTC"},
}
SURE: dict[str, Schema] = {
    "classification": {"set": {"type": "array", "items": TEXT, "description": "the labels that may be right"}},
    "regression": {"interval": {**by_name(INTERVAL), "description": "between what the values may lie"}},
}
PREDICTION_TAIL: Schema = {
    "alarm": {**BOOLEAN, "description": "where alarms are configured"},
    "delayed": {"const": True, "description": "it waited in the outbox while the link was down"},
    "clock": {"const": "unsynchronised", "description": "the clock of the device was not set"},
}
TENSOR_TYPE: Schema = {"enum": ["FP32", "INT64"]}
BOX: Schema = {
    "type": "array",
    "items": NUMBER,
    "minItems": 4,
    "maxItems": 4,
    "description": "left, top, right, bottom in the units of the model's own boxes",
}
ANSWERS: dict[str, Schema] = {
    "classification": {"label": TEXT, "score": NUMBER, "scores": by_name(NUMBER)},
    "regression": {"values": by_name(NUMBER)},
    "anomaly": {"score": NUMBER, "threshold": or_null(NUMBER), "anomaly": BOOLEAN},
    "tensor": {
        "tensors": {
            **by_name(members({"shape": {"type": "array", "items": COUNT}, "datatype": TENSOR_TYPE, "data": TEXT})),
            "description": "`data` is base64 of the little-endian numbers, row by row",
        }
    },
    "multilabel": {
        "labels": {**by_name(NUMBER), "description": "a score for each label; they need not sum to 1"},
        "present": {"type": "array", "items": TEXT, "description": "the labels that the model says are there"},
    },
    "embedding": {"embedding": {"type": "array", "items": NUMBER}},
    "detection": {
        "detections": {
            "type": "array",
            "items": members({"label": TEXT, "score": NUMBER, "box": BOX}),
            "description": "the highest score first; empty where nothing is found",
        }
    },
}
DRIFT_STATE: Schema = {"enum": ["ok", "watch", "alarm"]}
DRIFT_HEAD: Schema = {"state": DRIFT_STATE, "why": or_null(TEXT)}
KEYED: Schema = {"key": {**SOME_TEXT, "description": "the key that is worst off, where there are keys"}}
DRIFT_COLUMN = members(
    {
        **DRIFT_HEAD,
        "psi": {**or_null(NUMBER), "description": "population stability index of the last blocks against training"},
        "offset_sd": {**or_null(NUMBER), "description": "of the last blocks, in standard deviations of training"},
        "missing": {**or_null(SHARE), "description": "of the last block"},
        "out_of_range": {**or_null(SHARE), "description": "of the last block"},
        "stuck": BOOLEAN,
    },
    KEYED,
)
DRIFT_CAUSES: Schema = {
    "type": "array",
    "description": "what is not ok, the worst first, at most 32: a channel, an answer, the rate or the clock",
    "items": members({"at": SOME_TEXT, "cause": SOME_TEXT, "state": DRIFT_STATE}),
}
DRIFT = members(
    {
        "model": SOME_TEXT,
        "version": SOME_TEXT,
        **DRIFT_HEAD,
        "since": {**TIME, "description": "when `state` became what it is"},
        "causes": DRIFT_CAUSES,
        "blocks": {**COUNT, "description": "how many were judged since the start of the daemon"},
        "block": {**or_null(COUNT), "description": "readings that are judged together"},
        "calibrated": {**BOOLEAN, "description": "the bundle has limits for shape and offset"},
        "channels": by_name(DRIFT_COLUMN),
        "scores": members(
            {**DRIFT_HEAD, "output": or_null(SOME_TEXT), "psi": or_null(NUMBER), "offset_sd": or_null(NUMBER)}, KEYED
        ),
        "rate": members({**DRIFT_HEAD, "hz": or_null(NUMBER), "expected_hz": or_null(NUMBER)}, KEYED),
        "clock": members(
            {
                **DRIFT_HEAD,
                "offset_s": {**or_null(NUMBER), "description": "positive where the readings' clock is behind"},
            },
            KEYED,
        ),
        "keys": {**by_name(DRIFT_STATE), "description": "those that are not ok, the worst first, at most 32"},
        "watched": {**COUNT, "description": "streams"},
        "unwatched": {**COUNT, "description": "streams beyond the first 256"},
    }
)
LAST_REJECTED = by_name(members({"time": TIME, "where": TEXT, "why": TEXT, "sample": TEXT}))
STAGE: Schema = {"rejected": REASONS, "skipped": REASONS, "dropped": REASONS, "errors": REASONS}
HEALTH = members(
    {
        "time": TIME,
        "device": SOME_TEXT,
        "runtime": SOME_TEXT,
        "start": COUNT,
        "uptime_s": NUMBER,
        "machine": members({"id": or_null(TEXT), "uptime_s": or_null(NUMBER), "temperature_c": or_null(NUMBER)}),
        "readings": COUNT,
        "predictions": COUNT,
        "last_prediction": or_null(NUMBER),
        "published": COUNT,
        "queued": COUNT,
        **STAGE,
        "outbox": members(
            {
                "state": SOME_TEXT,
                "rows": COUNT,
                "memory_bytes": COUNT,
                "stored": COUNT,
                "quarantined": COUNT,
                "last_quarantined": {"type": "array", "items": by_name({})},
            }
        ),
        "link": by_name(TEXT),
        "connected": by_name(BOOLEAN),
        "broker": members({"url": or_null(TEXT), "fallback": BOOLEAN, "failovers": COUNT, "returns": COUNT}),
        "sources": by_name(
            {
                "type": "object",
                "properties": {"open": BOOLEAN, "state": TEXT, **STAGE, "last_rejected": LAST_REJECTED},
                "required": ["open", "state", "skipped", "last_rejected"],
                "additionalProperties": COUNT,
            }
        ),
        "sinks": by_name(
            {
                "type": "object",
                "properties": {"state": TEXT, **STAGE},
                "required": ["state"],
                "additionalProperties": COUNT,
            }
        ),
        "models": by_name(
            {
                "type": "object",
                "properties": {
                    "version": SOME_TEXT,
                    "keys": COUNT,
                    "gaps": COUNT,
                    "rate_hz": or_null(NUMBER),
                    "rate": {"enum": ["unknown", "ok", "off"]},
                    "latency_ms": QUANTILES,
                    "drift": members({**DRIFT_HEAD, "since": TIME, "causes": DRIFT_CAUSES}),
                    "accuracy": members(
                        {
                            "n": COUNT,
                            "accuracy": or_null(SHARE),
                            "interval": or_null(INTERVAL),
                            "estimated": or_null(SHARE),
                        },
                        {"mae": by_name(NUMBER)},
                    ),
                    **STAGE,
                },
                "required": ["version", "keys", "gaps", "rate_hz", "rate", "latency_ms"],
                "additionalProperties": COUNT,
            }
        ),
        "cpu_s": NUMBER,
        "rss_bytes": COUNT,
    },
    {
        "capture": members(
            {
                "state": SOME_TEXT,
                "bytes": COUNT,
                "max_bytes": COUNT,
                "chosen": REASONS,
                "written": COUNT,
                "lost": REASONS,
                "evicted_bytes": COUNT,
                "requested": by_name(members({"windows": COUNT, "taken": COUNT})),
            }
        ),
        "sparkplug": {
            "type": "object",
            "properties": {"state": TEXT, **STAGE},
            "required": ["state"],
            "additionalProperties": COUNT,
        },
    },
)
STANDING: Schema = {"state": SOME_TEXT, "why": or_null(TEXT)}
MODELS: Schema = {
    "type": "array",
    "items": members(
        {"name": SOME_TEXT, "bundle": SOME_TEXT, "version": SOME_TEXT, "digest": DIGEST, **STANDING},
        {"shadow": members({"version": SOME_TEXT, "digest": DIGEST, **STANDING})},
    ),
}
BUNDLE = members({"version": SOME_TEXT, "digest": DIGEST})
SHADOW = members(
    {
        "model": SOME_TEXT,
        "active": BUNDLE,
        "shadow": BUNDLE,
        "state": {"enum": ["starting", "running", "ended"]},
        "why": or_null(TEXT),
        "since": {},
        "left_out": COUNT,
        "failed": COUNT,
        "last_fault": or_null(TEXT),
    },
    {
        "compared": COUNT,
        "not_finite": COUNT,
        "labels": members({"same": COUNT, "share": or_null(SHARE), "active_to_shadow": by_name(by_name(COUNT))}),
        "difference": by_name(DIFFERENCES),
        "latency_ms": members({"active": QUANTILES, "shadow": QUANTILES}),
    },
)
ACCURACY = members(
    {
        "device": SOME_TEXT,
        "model": SOME_TEXT,
        "version": SOME_TEXT,
        "n": {**COUNT, "description": "predictions whose truth is known"},
        "accuracy": {**or_null(SHARE), "description": "the share of these that were right; null for a regression"},
        "interval": {**or_null(INTERVAL), "description": "Wilson's, of 95 %"},
        "confusion": {**by_name(by_name(COUNT)), "description": "truth -> prediction -> windows"},
        "withheld": {**COUNT, "description": "those of `n` that had not been published"},
        "estimated": {**or_null(SHARE), "description": "accuracy as the scores have it, without truth"},
        "estimated_over": {**COUNT, "description": "windows of that estimate"},
        "unmatched": members({"unknown": COUNT, "late": COUNT, "twice": COUNT, "conflict": COUNT}),
        "refused": members({}, {"malformed": COUNT, "unknown_label": COUNT}),
    },
    {
        "errors": {
            **by_name(members({"mae": NUMBER, "interval": or_null(INTERVAL), "rmse": NUMBER, "bias": NUMBER})),
            "description": "of each target of a regression; `interval` is that of `mae`, of 95 %",
        },
        "labels": {
            **by_name(members({"hit": COUNT, "missed": COUNT, "false": COUNT, "rest": COUNT})),
            "description": "of several labels: each with its windows, by whether it was there and was predicted",
        },
        "hamming": {**or_null(SHARE), "description": "of several labels: the share of wrong ones among all of them"},
        "right": {**COUNT, "description": "of several labels: windows of which every label was right"},
    },
)
ROLLOUT = members(
    {
        "rollout": SOME_TEXT,
        "serial": COUNT,
        "state": {"enum": ["pending", "receiving", "probation", "confirmed", "failed"]},
        "model": SOME_TEXT,
        "version": SOME_TEXT,
        "digest": DIGEST,
        "why": or_null(TEXT),
        "received": COUNT,
        "size": COUNT,
        "before": or_null(by_name(TEXT)),
    }
)
WANT = members({"transfer": SOME_TEXT, "offset": COUNT, "bytes": COUNT, "sha256": DIGEST})
OTA_STATUS: Schema = {
    "type": "object",
    "properties": {
        "transfer": SOME_TEXT,
        "state": {
            "enum": ["greeting", "receiving", "installing", "installed", "failed", "refused", "rolled back"],
        },
        "received": COUNT,
        "size": COUNT,
        "sha256": TEXT,
        "why": or_null(TEXT),
        "token": TEXT,
        "busy": BOOLEAN,
        "model": TEXT,
        "version": TEXT,
        "digest": TEXT,
    },
    "required": ["transfer", "state"],
    "additionalProperties": False,
}

# name of the file -> title, topic, and the schema
SCHEMAS: dict[str, tuple[str, str, Schema]] = {
    **{
        f"prediction-{task}": (
            f"A prediction of the task {task}",
            "edge/{device}/{model}/{key}",
            members({**PREDICTION_HEAD, **answer}, {**SURE.get(task, {}), **PREDICTION_TAIL}),
        )
        for task, answer in ANSWERS.items()
    },
    "health": ("Counters, states and figures of a device", "edge/{device}/health", HEALTH),
    "models": ("The models that a device runs", "edge/{device}/models", MODELS),
    "shadow": ("How far a candidate agrees with the model beside it", "edge/{device}/shadow/{model}", SHADOW),
    "drift": ("Whether readings and answers still look like the training", "edge/{device}/drift/{model}", DRIFT),
    "accuracy": ("How right a model is, as far as truth is known", "edge/{device}/accuracy/{model}", ACCURACY),
    "rollout": ("How a device stands to its rollout", "edge/{device}/rollout", ROLLOUT),
    "ota-want": ("The next part of a bundle that a device wants", "edge/{device}/ota/want", WANT),
    "ota-status": ("How a transfer or a rollback goes", "edge/{device}/ota/status", OTA_STATUS),
    "status": ("Plain text, not JSON", "edge/{device}/status", {"enum": ["online", "offline"]}),
}
_NO_MODELS = {"status", "models", "health", "desired", "rollout", "ota", "shadow", "predict", "answers"}
_NO_MODELS |= {"capture", "drift", "truth", "accuracy"}


def whole(name: str, examples: list[Any]) -> Schema:
    """The schema as it is written into its file."""
    title, topic, schema = SCHEMAS[name]
    about = f"{title}, on `{topic}`." + (" In MessagePack the members are the same." if name[:4] == "pred" else "")
    return {"$schema": DIALECT, "title": title, "description": about, **schema, "examples": examples}


@cache
def validator(name: str) -> Draft202012Validator:
    """Of one file, by its name."""
    return Draft202012Validator(SCHEMAS[name][2])


def name_of(topic: str, document: Any) -> str | None:
    """Which schema a message has to satisfy; None for what no device publishes."""
    levels = topic.split("/")
    if len(levels) < 3 or levels[0] != "edge":
        return None
    for name, (_, template, _) in SCHEMAS.items():
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if not name.startswith("prediction") and re.fullmatch(pattern, topic):
            return name
    if len(levels) != 4 or levels[2] in _NO_MODELS or not isinstance(document, dict) or "seq" not in document:
        return None
    for task, answer in ANSWERS.items():
        if set(answer) <= document.keys():
            return f"prediction-{task}"
    return "prediction-classification"  # fails, with the members that it lacks


def faults(topic: str, document: Any) -> Iterator[str]:
    """What is wrong with a message, a line each; nothing where no schema is for its topic."""
    name = name_of(topic, document)
    if name is not None:
        for error in validator(name).iter_errors(document):
            yield f"{topic}: {name}.json: {error.json_path}: {error.message[:300]}"


def write(examples: dict[str, list[Any]], folder: Path = FOLDER) -> dict[Path, str]:
    """The files as they should be."""
    return {
        folder / f"{name}.json": json.dumps(whole(name, examples[name]), indent=2, ensure_ascii=False) + "\n"
        for name in SCHEMAS
    }


def payload_faults(messages: list[Message], most: int = 20) -> Iterator[str]:
    """What is wrong with the messages of a test: with the first ones of each topic, and with its last one."""
    seen: dict[str, list[Message]] = {}
    for message in messages:
        seen.setdefault(message.topic, []).append(message)
    for topic, found in seen.items():
        for message in [*found[:most], *found[most:][-1:]]:
            document: Any = message.payload.decode(errors="replace")
            if topic.split("/")[2:] != ["status"]:
                try:
                    document = json.loads(document)
                except ValueError:
                    continue  # MessagePack, or a message of the test's own
            yield from faults(topic, document)
