"""Examples of what a device publishes, made by the code that publishes it; `python -m ...` writes `docs/schemas/`.

Everything that would differ from run to run is fixed, so that the files can be compared.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np

from edge_runtime.bundle.manifest import Manifest
from edge_runtime.bundle.model import Scores
from edge_runtime.daemon.documents import Described, health_document, models_document
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.delivery.outbox import Outbox
from edge_runtime.drift.monitor import Monitor
from edge_runtime.readings import Floats, Prediction
from edge_runtime.store.agreement import Agreement
from edge_runtime.store.desired_document import Desired, report
from edge_runtime.system.counters import Counters
from edge_runtime.truth.figures import TruthFigures
from tests.support import builders, drifting
from tests.support.payload_schemas import FOLDER, write
from tests.support.stepped import SteppedLoop

DIGEST = "b5bb9d8014a0f9b1d61e21e796d78dccdf1352f23cd32812f4850b878ae4944c"
WHEN = 1_795_470_736.25


def examples() -> dict[str, list[Any]]:
    """By the name of the schema."""
    found: dict[str, list[Any]] = {f"prediction-{task}": made for task, made in predictions().items()}
    found["health"] = [health()]
    found["models"] = [models()]
    found["shadow"] = [shadow()]
    found["drift"] = [drift()]
    found["accuracy"] = accuracy()
    found["rollout"] = [rollout()]
    found["ota-want"] = [{"transfer": "a1b2", "offset": 65_536, "bytes": 32_768, "sha256": DIGEST}]
    found["ota-status"] = [
        {"transfer": "a1b2", "state": "receiving", "received": 65_536, "size": 5_242_880, "sha256": DIGEST, "why": None}
    ]
    found["status"] = ["online"]
    return found


def _floats(*values: float) -> Floats:
    return np.array(values, np.float32)


def predictions() -> dict[str, list[Any]]:
    """One of each task, and one that was delayed, with an alarm, on a clock that was not set."""
    head: dict[str, Any] = {"key": "press-7", "time": WHEN, "seq": 1234, "identity": None}
    made = {
        "classification": (
            builders.classification(labels=("ok", "worn")),
            Prediction(**head, label="worn", score=0.973, scores=_floats(0.027, 0.973), alarm=True, can_alarm=True),
        ),
        "regression": (
            builders.regression(targets=("power",)),
            Prediction(**head, values=_floats(12.5)),
        ),
        "tensor": (
            builders.tensors(),
            Prediction(**head, tensors={"heat": np.ones((2, 3), np.float32), "peak": np.array([0, 1, 1], np.int64)}),
        ),
        "multilabel": (
            builders.multilabel(),
            Prediction(
                **head,
                tensors={"labels": np.array([1, 0, 1], np.int64), "scores": _floats(0.97, 0.125, 0.75)},
                alarm=True,
                can_alarm=True,
            ),
        ),
        "embedding": (
            builders.tensors(task="embedding"),
            Prediction(**head, tensors={"embedding": _floats(0.25, -1.5, 0.1, 0.0, 2.0, 1.0)}),
        ),
        "detection": (
            builders.detection(),
            Prediction(
                **head,
                tensors={
                    "boxes": np.array([[10, 20, 110, 220], [5, 5, 8, 9], [0, 0, 0, 0]], np.float32),
                    "scores": _floats(0.91, 0.4, 0.0),
                    "label": np.array([1, 0, -1], np.int64),
                },
                alarm=True,
                can_alarm=True,
            ),
        ),
        "anomaly": (builders.anomaly(), Prediction(**head, score=3.5, anomaly=True, alarm=True, can_alarm=True)),
    }
    found: dict[str, list[Any]] = {}
    for task, (draft, prediction) in made.items():
        manifest = msgspec.convert(draft.manifest, Manifest)
        payload = JsonPayload(
            device="press-07", model="m", source="imu", start=1_795_470_700, manifest=manifest, threshold=2.0
        )
        found[task] = [msgspec.json.decode(payload.encode(prediction))]
        if task == "anomaly":
            late = msgspec.json.decode(payload.encode(prediction, synchronised=False))
            found[task].append({**late, "delayed": True})
    return found


def health() -> Any:
    """A device with one serial source, of which a line was noise."""
    counters: defaultdict[str, Counters] = defaultdict(Counters)
    source = counters["source imu"]
    source.counts.update(readings=51_200, bytes=1_204_224)
    source.rejected["noise"] += 1
    source.last_rejected["noise"] = {
        "time": "2026-11-23T21:50:31Z",
        "where": "/dev/serial/by-id/usb-imu",
        "why": "expected text, found bytes that are none",
        "sample": "\\xff\\x00",
    }
    counters["outbox"].counts.update(published=400, stored=0)
    connection = SimpleNamespace(
        name="upstream",
        state="connected to mqtt://broker.example",
        connected=True,
        url="mqtt://broker.example",
        is_fallback=False,
    )
    siren = {
        "state": "/usr/local/bin/siren: ended with exit code 1: no such relay",
        "runs": 2,
        "errors": {"failed": 1},
    }
    daemon = SimpleNamespace(
        config=SimpleNamespace(device=SimpleNamespace(id="press-07")),
        started=0.0,
        start_number=1_795_470_700,
        counters=counters,
        outbox=Outbox(SteppedLoop().as_loop, Counters(), store=None, commit_interval=1.0, max_memory_bytes=1 << 20),
        upstream_connection=connection,
        connections=[connection],
        pipelines=[],
        sources=[("imu", SimpleNamespace(is_open=True, state="/dev/serial/by-id/usb-imu: open"))],
        exchange=None,
        captures=None,
        outputs=SimpleNamespace(document=lambda: {"sinks": {"siren": siren}}),
        accuracy={},
    )
    document = health_document(cast("Described", daemon))
    fixed = {
        "time": "2026-11-23T21:52:16Z",
        "runtime": "1.0.0",
        "uptime_s": 36.2,
        "cpu_s": 1.25,
        "rss_bytes": 70_254_592,
    }
    machine = {"id": "0f1e2d3c4b5a6978", "uptime_s": 86_400.5, "temperature_c": 48.3}
    return document | fixed | {"machine": machine}


def models() -> Any:
    """One model of the store, with a candidate beside it."""
    manifest = msgspec.convert(builders.classification(name="vibration").manifest, Manifest)
    pipeline = SimpleNamespace(
        config=SimpleNamespace(name="m"),
        model=SimpleNamespace(manifest=manifest, bundle=SimpleNamespace(digest=DIGEST)),
    )
    beside = {"version": "1.1.0", "digest": DIGEST[::-1], "state": "staged", "why": None}
    exchange = SimpleNamespace(standing=lambda _: ("active", None), beside=lambda _: beside)
    return models_document(cast("Described", SimpleNamespace(pipelines=[pipeline], exchange=exchange)))


def shadow() -> Any:
    """Two models that disagree on one of three windows."""
    manifest = msgspec.convert(builders.classification(labels=("ok", "worn")).manifest, Manifest)
    agreement = Agreement(manifest, manifest)
    scores = _floats(0.9, 0.1, 0.2, 0.8, 0.6, 0.4).reshape(3, 2)
    others = _floats(0.8, 0.2, 0.1, 0.9, 0.4, 0.6).reshape(3, 2)
    agreement.add(
        Scores(label=scores.argmax(axis=1), scores=scores), Scores(label=others.argmax(axis=1), scores=others)
    )
    agreement.took("active", 0.0005)
    agreement.took("shadow", 0.00075)
    return {
        "model": "m",
        "active": {"version": "1.0.0", "digest": DIGEST},
        "shadow": {"version": "1.1.0", "digest": DIGEST[::-1]},
        "state": "running",
        "why": None,
        "since": "2026-11-23T21:00:00Z",
        "left_out": 0,
        "failed": 0,
        "last_fault": None,
        **agreement.document(),
    }


def drift() -> Any:
    """Two keys, one of which has a channel that is stuck."""
    rng = np.random.default_rng(0)
    monitor = Monitor(drifting.manifest(drifting.readings(rng, 4000), ("temperature", "pressure")), is_recorded=True)
    readings = drifting.readings(rng, 512)
    for key in ("press-1", "press-2"):
        if key == "press-2":
            readings[:, 0] = 20.5
        monitor.take(readings, [key] * len(readings), [WHEN + row for row in range(len(readings))], 0.0)
    return {"model": "m", **monitor.document(), "since": "2026-11-23T21:00:00Z"}


def accuracy() -> list[Any]:
    """A classification of which three windows were judged, a regression of two, and several labels of one."""
    head = {"device": "press-07", "model": "m", "version": "1.0.0"}
    unmatched = {"unknown": 1, "late": 0, "twice": 2, "conflict": 0}
    labels, values, several = TruthFigures(), TruthFigures(), TruthFigures()
    for answered, true in (("ok", "ok"), ("worn", "worn"), ("ok", "worn")):
        labels.judge(answered, true, ())
    for value in (12.5, 13.0):
        values.judge([value], [12.25], ("power",))
    several.judge_labels([True, False, False], [True, False, True], ("hot", "wet", "loud"))
    rest = {"withheld": 0, "estimated": None, "estimated_over": 0, "unmatched": unmatched, "refused": {"malformed": 1}}
    return [{**head, **each.document(), **rest} for each in (labels, values, several)]


def rollout() -> Any:
    """A device that waits for its window of maintenance."""
    desired = Desired(
        device="press-07", rollout="r-7", serial=12, model="m", version="1.1.0", digest=DIGEST, size=5_242_880
    )
    before = {"version": "1.0.0", "digest": DIGEST[::-1]}
    return msgspec.to_builtins(report(desired, "pending", "outside the window 22:00-05:00 UTC", before=before))


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in write(examples()).items():
        path.write_text(text, encoding="utf-8")
