"""A served model: its HTTP name, its loaded bundle, and the form of its answers."""

import itertools
import time
from collections.abc import Iterator

import msgspec
import numpy as np

from edge_runtime.bundle.model import Model, Scores
from edge_runtime.config.tables import ModelTable
from edge_runtime.delivery.json_payload import JsonPayload
from edge_runtime.http.responses import HttpError
from edge_runtime.readings import Floats
from edge_runtime.stream.codecs import make_decoder
from edge_runtime.stream.contract import Contract
from edge_runtime.stream.decide import Decider
from edge_runtime.stream.frame_contract import frame_contract

Numbers = dict[str, Iterator[int]]
MOST_DETAILS = 20  # of the violations of one request


class Served:
    """One model on demand.

    Args:
        name: of the model in the path.
        model: the loaded bundle.
        device: the id of the answering device.
        start: the number of this start, for the ids of predictions.
        config: its table in the device file, for the same threshold. None for `serve`.
        source: the transport of the requests, for predictions and their ids.
        numbers: the numbers of predictions by model, which continue after an exchange of the bundle; None if there is
            never an exchange.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        *,
        device: str,
        start: int,
        config: ModelTable | None = None,
        source: str = "http",
        numbers: Numbers | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.manifest = model.manifest
        self._start = start
        self._source = source
        plain = config or ModelTable(name=name, bundle=str(model.bundle.path), source="http")
        # Requests are independent: smoothing and withholding, as in a stream, do not apply.
        self._config = msgspec.structs.replace(plain, publish="always", smoothing=None, min_interval=0.0)
        self.on_rate = plain.on_rate
        self.publish = plain.publish  # of the stream, for the status page
        self.fed_by = plain.source
        self._contract = Contract(self.manifest.input.channels)
        self._frames = frame_contract(self.manifest.input)
        self._decider = Decider(self.manifest, self._config)
        self.threshold = self._decider.threshold
        self._payload = JsonPayload(
            device=device,
            model=name,
            source=source,
            start=start,
            manifest=self.manifest,
            threshold=self._decider.threshold,
        )
        self.decoder = make_decoder(
            "json", self.manifest.channel_names, shape=self.manifest.input.shape, place=f"model {name}",
            categories=self.manifest.categories,
        )  # fmt: skip
        self._numbers = itertools.count(1) if numbers is None else numbers.setdefault(name, itertools.count(1))

    def check(self, windows: Floats) -> None:
        """Check windows against the contract, as the stream does.

        Raises:
            HttpError: 422, with the reasons counted and the first violations by reading and channel.
        """
        channels = self.manifest.input.channels
        if not channels:
            if not np.isfinite(windows).all():
                raise HttpError(422, "the window holds NaN or infinity", reasons={"not_finite": 1})
            if self._frames is not None and self._frames.check(windows, []) is not None:
                refusals = self._frames.refusals.items()
                details = [self._frames.explain(reason, windows[refusal.row]) for reason, refusal in refusals]
                reasons = {reason: refusal.number for reason, refusal in refusals}
                raise HttpError(422, details[0], reasons=reasons, details=details)
            return
        readings = np.ascontiguousarray(windows).reshape(-1, len(channels))
        if self._contract.check(readings, []) is None:  # which changes nothing where all is well
            return
        contract = Contract(channels)
        good = contract.check(readings, [])
        assert good is not None
        details = [text for row in np.flatnonzero(~good)[:MOST_DETAILS] for text in self._violations(row, readings)]
        reasons = {reason: count for reason, count in contract.rejected.items() if count}
        raise HttpError(422, details[0], reasons=reasons, details=details[:MOST_DETAILS])

    def prediction(
        self, scores: Scores, *, key: str | None = None, moment: float | None = None, identity: str | None = None
    ) -> bytes:
        """The first row of `scores` as a prediction for a subscriber."""
        prediction = self._decider.decide(scores, 0, key, time.time() if moment is None else moment)
        self._decider.forget([key])  # nothing of this request is remembered for the next
        assert prediction is not None
        prediction.seq = next(self._numbers)
        prediction.identity = identity or f"{self._source}-{self._start}-{prediction.seq}"
        return self._payload.encode(prediction)

    def _violations(self, row: int, readings: Floats) -> list[str]:
        found = []
        for place, channel in enumerate(self.manifest.input.channels):
            value = readings[row, place]
            low, high = channel.limits or (-np.inf, np.inf)
            where = f"reading {row}: {channel.name}" if len(readings) > 1 else channel.name
            unit = f" {channel.unit}" if channel.unit and channel.unit != "1" else ""
            if np.isnan(value):
                if channel.missing == "allowed":
                    continue
                found.append(f"{where}: expected a number, found none")
            elif np.isinf(value):
                found.append(f"{where}: expected a number, found infinity")
            elif channel.categories:
                if not low <= value <= high or value != np.rint(value):
                    found.append(f"{where}: expected one of {', '.join(channel.categories)}, found another")
            elif not np.float32(low) <= value <= np.float32(high):
                found.append(f"{where}: expected {low:g} to {high:g}{unit}, found {value!s}")
        return found


def find(models: dict[str, Served], name: str, version: str | None = None) -> Served:
    """The model of this name and, if given, version.

    Raises:
        HttpError: 404.
    """
    served = models.get(name)
    if served is None:
        known = ", ".join(models) or "none"
        raise HttpError(404, f"expected one of the models {known}, found {name[:64]!r}")
    if version is not None and version != served.manifest.version:
        raise HttpError(404, f"{name}: expected version {served.manifest.version}, found {version[:64]!r}")
    return served
