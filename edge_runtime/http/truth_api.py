"""`POST /truth/{model}`: the right answer for a published prediction, joined by the daemon that made it.

The body is that of `edge/{device}/truth/{model}`. Truth that cannot be joined is refused with the logged sentence, and
counted like any other truth.
"""

from collections.abc import Callable
from typing import Protocol

from edge_runtime.http.responses import HttpError, Response, json_response


class ToldTruth(Protocol):
    """The result of handling a truth, from `truth/live.py`."""

    @property
    def result(self) -> str:
        """`joined`, or the reason why not."""

    @property
    def why(self) -> str:
        """That reason as a sentence."""

    @property
    def id(self) -> str | None:
        """Of the prediction."""

    @property
    def right(self) -> bool | None:
        """Whether it was right; None for values."""


TakeTruth = Callable[[str, bytes], ToldTruth | None]

_STATUS = {"malformed": 400, "unknown_label": 422, "unknown_model": 404, "unknown": 404, "late": 410, "conflict": 409}


def tell_truth(take: TakeTruth | None, model: str, body: bytes) -> Response:
    """Pass on a truth, and answer with the result.

    Raises:
        HttpError: it was not joined.
    """
    outcome = None if take is None else take(model, body)
    if outcome is None:
        raise HttpError(404, "no predictions are remembered here: truth is taken by a daemon, with [truth] remember")
    status = _STATUS.get(outcome.result)
    if status is not None:
        raise HttpError(status, outcome.why)
    response = json_response({"result": outcome.result, "id": outcome.id, "right": outcome.right})
    if outcome.result == "waiting":  # its prediction may still arrive
        response.status = 202
    return response
