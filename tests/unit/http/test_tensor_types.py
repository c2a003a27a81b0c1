"""Numbers of other types than FP32: cast where float32 holds them, and refused with their place where it does not."""

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bundle.model import Model
from edge_runtime.bundle.open import open_bundle
from edge_runtime.http import oip_v2
from edge_runtime.http.responses import HttpError
from edge_runtime.http.served_model import Served
from edge_runtime.http.tensor_types import TYPES, cast
from tests.support import builders

WIDE = sorted(set(TYPES) - {"FP32", "FP16"})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A model of two channels."""
    path = builders.classification().save(tmp_path_factory.mktemp("bundle") / "activity.onnx")
    return Served("activity", Model(open_bundle(path)), device="d", start=1)


def by_json(served: Served, datatype: str, data: str) -> Any:
    """The window of a request whose numbers are written out."""
    tensor = f'{{"name": "window", "shape": [1, 1, 2], "datatype": "{datatype}", "data": {data}}}'
    return oip_v2.infer(served, f'{{"inputs": [{tensor}]}}'.encode(), None).windows


def by_bytes(served: Served, datatype: str, values: list[Any]) -> Any:
    """The window of a request of binary tensor data."""
    raw = np.array(values).astype(TYPES[datatype]).tobytes()
    tensor = {"name": "window", "shape": [1, 1, 2], "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    return oip_v2.infer(served, head + raw, str(len(head))).windows


@pytest.mark.parametrize("datatype", sorted(TYPES))
def test_each_type_is_taken(served: Served, datatype: str) -> None:
    """The same small numbers are the same window in every type, as text and as bytes."""
    wanted = np.array([[[21, 48]]], np.float32)
    np.testing.assert_array_equal(by_bytes(served, datatype, [21, 48]), wanted)
    np.testing.assert_array_equal(by_json(served, datatype, "[[[21, 48]]]"), wanted)
    np.testing.assert_array_equal(by_json(served, datatype, "[21, 48]"), wanted)


@pytest.mark.parametrize(
    ("datatype", "data", "words"),
    [
        ("FP64", "[0.1, 48]", "found 0.1 at place 0"),
        ("FP64", "[21, 1e300]", "found 1e+300 at place 1"),
        ("FP16", "[0.1, 48]", "numbers that FP16 holds exactly, found 0.1 at place 0"),
        ("FP16", "[21, 1e6]", "numbers that FP16 holds exactly, found 1000000.0 at place 1"),
        ("FP16", "[21, 2049]", "numbers that FP16 holds exactly, found 2049.0 at place 1"),
        ("INT32", "[21, 16777217]", "found 16777217 at place 1"),
        ("INT64", "[9007199254740993, 1]", "found 9007199254740993 at place 0"),
        ("UINT64", "[18446744073709551615, 1]", "found 18446744073709551615 at place 0"),
        ("INT8", "[128, 1]", "expected numbers from -128 to 127, which INT8 holds"),
        ("UINT8", "[-1, 1]", "expected numbers from 0 to 255"),
        ("INT64", "[9223372036854775808, 1]", "expected numbers from -9223372036854775808"),
        ("INT16", "[1.5, 1]", "expected rows of numbers"),
        ("INT16", "[1.0, 1]", "expected rows of numbers"),
        ("INT16", "[null, 1]", "expected rows of numbers"),
        ("INT16", "[true, 1]", "expected rows of numbers"),
        ("BOOL", "[1, 1]", "expected FP32, or one of FP64"),
        ("fp64", "[1, 1]", "expected FP32, or one of FP64"),
    ],
)
def test_what_would_be_rounded_or_cut_is_refused(served: Served, datatype: str, data: str, words: str) -> None:
    """A client learns which number it was, and how to have it rounded."""
    with pytest.raises(HttpError) as refused:
        by_json(served, datatype, data)
    assert refused.value.status == 400
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [("FP64", [0.1, 1.0]), ("INT64", [2**53 + 1, 1]), ("UINT32", [2**32 - 1, 1]), ("INT64", [-(2**25) - 1, 1])],
)
def test_bytes_are_judged_as_text_is(served: Served, datatype: str, values: list[Any]) -> None:
    """No way in rounds."""
    with pytest.raises(HttpError, match="expected numbers that float32 holds exactly"):
        by_bytes(served, datatype, values)


def holds(value: float) -> bool:
    """Whether a float of four bytes gives a number back, asked of `struct` and of Python's own numbers."""
    try:
        found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return False
    return found == value  # Python compares int and float exactly


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(WIDE), st.data())
def test_the_cast_agrees_with_python(datatype: str, data: st.DataObject) -> None:
    """What is taken is what a float of four bytes gives back, and everything else is refused."""
    kind = np.dtype(TYPES[datatype])
    if kind.kind == "f":
        value: Any = data.draw(st.floats(allow_nan=False) | st.floats(width=32, allow_nan=False))
    else:
        limits = np.iinfo(kind)
        powers = st.builds(lambda digits, shift: digits << shift, st.integers(0, 2**25), st.integers(0, 40))
        value = data.draw(st.integers(int(limits.min), int(limits.max)) | powers)
        if not limits.min <= value <= limits.max:
            return
    try:
        found = cast("window", np.array([value], kind))
    except HttpError:
        assert not holds(value)
    else:
        assert holds(value)
        assert found[0] == value


def test_nan_is_judged_by_the_contract(served: Served) -> None:
    """A double that is no number is no fault of its type; the channels refuse it as ever."""
    with pytest.raises(HttpError) as refused:
        by_bytes(served, "FP64", [float("nan"), 1.0])
    assert refused.value.status == 422
