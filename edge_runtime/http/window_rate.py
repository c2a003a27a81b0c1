"""The rate of a window that a request brings with times: judged, and brought to the model's, as in the stream."""

from typing import assert_never

import numpy as np

from edge_runtime.http.responses import HttpError
from edge_runtime.http.served_model import Served
from edge_runtime.readings import Floats
from edge_runtime.stream.codecs import Decoded
from edge_runtime.stream.rate import FEWEST, KeyRate, rates_in_words
from edge_runtime.stream.resample import Resampler
from edge_runtime.system.log import fields, get_logger

MOST_FASTER = 10  # a request to be resampled may have so many times the model's readings
_log = get_logger("http")


def at_the_models_rate(served: Served, decoded: Decoded) -> tuple[Floats, str]:
    """The readings of a request at the rate of the model, and a warning about them, or an empty text.

    If their rate is unknown they are unchanged.

    Raises:
        HttpError: 422, if the rate is off and `on_rate` is `reject`, or if they are too few to be resampled.
    """
    window = served.manifest.input.window
    times = [moment for moment in decoded.times if moment is not None]
    if window.rate_hz is None or window.length == 1 or len(times) < len(decoded) or len(times) < FEWEST:
        return decoded.values, ""
    rate = KeyRate(1.0 / window.rate_hz, len(times) - 1)
    for moment in times:
        rate.measured(moment)
    if rate.state != "off" or rate.interval is None:
        return decoded.values, ""
    text = rates_in_words(window.rate_hz, 1.0 / rate.interval, window.length)
    match served.on_rate:
        case "reject":
            raise HttpError(422, text, reasons={"wrong_rate": len(times)})
        case "resample":
            _, outputs, _ = Resampler(window.rate_hz).push(np.array(times), decoded.values, rate.interval)
            return outputs[-window.length :], f"{text}: resampled"
        case "warn":
            _log.warning(text, extra=fields(model=served.name))
            return decoded.values, text
        case _:
            assert_never(served.on_rate)
