"""A status page with an hour behind it: three models over in-process boards, without a broker and without waiting."""

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.config.tables import ModelTable
from edge_runtime.http.app import App
from edge_runtime.http.history import History
from edge_runtime.http.live_view import Board
from edge_runtime.http.page_facts import names_of
from edge_runtime.http.served_model import Served
from edge_runtime.http.server import Server
from edge_runtime.readings import Prediction
from tests.support import builders

PUMPS = ("pump-1", "pump-2")


class Scene:
    """The board and its server; `play` brings the last hour, `live` one more prediction of each key."""

    def __init__(self, folder: Path) -> None:
        tables = {
            "vibration": ModelTable(name="vibration", bundle="vibration", source="imu", alarm_labels=("worn",)),
            "room": ModelTable(name="room", bundle="room", source="climate", publish="change"),
            "noise": ModelTable(name="noise", bundle="noise", source="microphone"),
        }
        drafts = {
            "vibration": builders.classification(name="vibration", labels=("ok", "worn")),
            "room": builders.regression(name="room", targets=("temperature", "flow")),
            "noise": builders.anomaly(name="noise", threshold=0.5),
        }
        targets, channels = drafts["room"].manifest["output"]["targets"], drafts["room"].manifest["input"]["channels"]
        for each, unit in zip((*targets, *channels), ("°C", "m3/h", "A", "V"), strict=True):
            each["unit"] = unit
        models = {name: Model(open_bundle(draft.save(folder / f"{name}.onnx"))) for name, draft in drafts.items()}
        self.minute = int(time.monotonic() // 60)
        self.board = Board(health=self._health)
        self.board.history = History(lambda: self.minute)
        served = [Served(name, models[name], device="press-07", start=1, config=tables[name]) for name in models]
        self._names = {name: names_of(model.manifest) for name, model in models.items()}
        self._random = random.Random(9)
        self.server = Server(App(served, self.board), "127.0.0.1:0")

    def play(self) -> None:
        """An hour: pump-1 wears out towards its end, pump-2 stays well and pauses; a quiet room; one strange noise."""
        end, self.minute = self.minute, self.minute - 59
        while True:
            back = end - self.minute
            for second in (10, 30, 50):
                when = time.time() - 60 * back - (60 - second)
                wear = min(0.97, max(0.02, 0.75 - back / 40 + self._random.gauss(0, 0.06)))
                self._classify("pump-1", wear, when)
                if not 20 < back < 35:
                    self._classify("pump-2", 0.05 + 0.04 * self._random.random(), when)
                self._values(20.5 + 1.5 * math.sin(back / 9) + self._random.gauss(0, 0.1), 0.4 + back / 300, when)
                self._judge(0.2 + 0.1 * self._random.random() if back != 12 else 0.95, when)
            if back == 0:
                return
            self.minute += 1

    def live(self) -> None:
        """What an open page sees as it comes."""
        rng, now = self._random, time.time()
        self._classify("pump-1", 0.9 + 0.05 * rng.random(), now, shown=True)
        self._classify("pump-2", 0.05 + 0.04 * rng.random(), now, shown=True)
        readings = {
            "source": "climate",
            "key": None,
            "values": {"current": 1.5 + rng.gauss(0, 0.2), "voltage": 230.0 + rng.gauss(0, 1)},
        }
        self.board.post("reading", json.dumps(readings).encode())

    def _classify(self, key: str, wear: float, when: float, *, shown: bool = False) -> None:
        label, alarm = ("worn", True) if wear > 0.5 else ("ok", False)
        scores = np.array([1 - wear, wear], dtype=np.float32)
        self._add("vibration", Prediction(key, when, 1, None, label=label, scores=scores, alarm=alarm, can_alarm=True))
        if shown:
            document: dict[str, Any] = {"model": "vibration", "key": key, "time": _iso(when), "label": label}
            document |= {"score": max(wear, 1 - wear), "scores": {"ok": 1 - wear, "worn": wear}, "alarm": alarm}
            self.board.post("prediction", json.dumps(document).encode())

    def _values(self, temperature: float, flow: float, when: float) -> None:
        values = np.array([temperature, flow], dtype=np.float32)
        self._add("room", Prediction(None, when, 1, None, values=values))

    def _judge(self, score: float, when: float) -> None:
        stands_out = score > 0.5
        self._add("noise", Prediction(None, when, 1, None, score=score, anomaly=stands_out, alarm=stands_out))

    def _add(self, model: str, prediction: Prediction) -> None:
        self.board.history.add(model, self._names[model], prediction)

    def _health(self) -> dict[str, Any]:
        model = {"version": "1.0.0", "predictions": 5184, "latency_ms": {"p50": 0.4}, "rate": "ok", "rate_hz": 0.05}
        why = {
            "missing_channel": ("line 4711", "no `accel_z`: expected 3 columns, found 2", "0.11,9.81"),
            "out_of_range": ("line 4720", "accel_x: expected -80 to 80, found 131.2", "131.2,0.4,9.79"),
        }
        rejected = {
            reason: {"time": _iso(time.time() - 90 * (1 + place)), "where": where, "why": answered, "sample": sample}
            for place, (reason, (where, answered, sample)) in enumerate(why.items())
        }
        counts = {"missing_channel": 12, "out_of_range": 3}
        return {
            "time": _iso(time.time()),
            "device": "press-07",
            "runtime": "1.0.0",
            "uptime_s": 90061.0,
            "readings": 1_036_800,
            "predictions": 15_552,
            "published": 15_540,
            "queued": 2,
            "rejected": counts,
            "dropped": {},
            "errors": {"model_failed": 1},
            "outbox": {"state": "memory only"},
            "link": {"upstream": "connected to mqtt://broker.example:1883"},
            "sources": {
                "imu": {"open": True, "state": "open at 115200", "rejected": counts, "last_rejected": rejected},
                "climate": {"open": True, "state": "subscribed", "last_rejected": {}},
                "microphone": {"open": False, "state": "silent for 75 s", "last_rejected": {}},
            },
            "models": {"vibration": model, "room": model, "noise": {**model, "rate": "off"}, "camera": model},
            "rss_bytes": 70_000_000,
        }


@contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """A scene whose server runs."""
    made = Scene(folder)
    made.play()
    made.server.start()
    try:
        yield made
    finally:
        made.server.stop()


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
