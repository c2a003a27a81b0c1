"""Requests to a model of tokens: whole numbers in their own type, or as floats; what is no token is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http import oip_v2
from edge_runtime.http.responses import HttpError
from edge_runtime.http.served_model import Served
from tests.support import builders


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A model of five tokens out of eleven."""
    return Served("tokens", Model(open_bundle(builders.tokens().save(tmp_path / "m.onnx"))), device="d", start=1)


def asked(served: Served, rows: list[list[Any]], datatype: str) -> Any:
    """The windows that a request comes to."""
    tensor = {"name": "window", "shape": [len(rows), 5], "datatype": datatype, "data": rows}
    return oip_v2.infer(served, json.dumps({"inputs": [tensor]}).encode(), None).windows


def test_whole_numbers_come_in_their_own_type_or_as_floats(served: Served) -> None:
    """INT64, as JSON or as bytes, and FP32 are the same windows."""
    rows = [[0, 1, 2, 3, 10], [4, 4, 4, 4, 4]]
    wanted = np.array(rows, np.float32)
    np.testing.assert_array_equal(asked(served, rows, "INT64"), wanted)
    np.testing.assert_array_equal(asked(served, rows, "FP32"), wanted)
    raw = np.array(rows, "<i8").tobytes()
    tensor = {"name": "window", "shape": [2, 5], "datatype": "INT64", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    np.testing.assert_array_equal(oip_v2.infer(served, head + raw, str(len(head))).windows, wanted)


def test_what_is_no_token_is_refused_with_its_reason(served: Served) -> None:
    """Beyond the vocabulary, half a token, and what is no number."""
    for row, reason, text in (
        ([0, 0, 0, 0, 11], "out_of_range", "expected 0 to 10, found 11 at number 4 of the frame"),
        ([0, 0.5, 0, 0, 1], "wrong_type", "expected whole numbers, found 0.5 at number 1 of the frame"),
    ):
        with pytest.raises(HttpError) as refused:
            asked(served, [row], "FP32")
        assert refused.value.more["reasons"] == {reason: 1}
        assert text in str(refused.value)
    with pytest.raises(HttpError, match=r"datatype: expected FP32, or one of .*INT64.*, found 'BYTES'"):
        asked(served, [[0, 0, 0, 0, 0]], "BYTES")
