"""Which form is kept among those that keep the metric, and the sentence that says why."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter import footprint
from converter.choice import Form, choose
from converter.evaluate import Judgement
from converter.load.source import Answer
from converter.quantize import Candidate, Recipe, Request
from converter.session import Speed
from tests.support.waiting import patient

KIB = 1024
FLOAT = Recipe("none")


def form(recipe: Recipe, size: int, wall_us: float, metric: float = 0.9) -> Form:
    """A form of a size, a time and a metric."""
    judgement = Judgement(metric, 0, 0.0, (0.0, 0.0, 0.0))
    answer = Answer(label=np.zeros(1, np.int64))
    return Form(Candidate(recipe, bytes(size - 2000), b""), answer, judgement, Speed(wall_us, wall_us), 2000)


def kept(*forms: Form, prefer: Any = "balanced", request: Request = "auto") -> tuple[str, str]:
    """The name of the form that is kept, and the reason."""
    best, reason = choose(forms, request=request, reference=0.9, max_drop=0.01, prefer=prefer)
    return best.candidate.name if best else "", reason


BASE = form(FLOAT, 100 * KIB, 1000.0)


@pytest.mark.parametrize(
    ("rivals", "expected"),
    [
        ([form(Recipe("dynamic"), 99 * KIB, 13_000.0)], "float32"),  # seen: 1 kB smaller, 13 times slower
        ([form(Recipe("float16"), 99 * KIB, 1400.0)], "float32"),  # seen: 1 % smaller, 40 % slower
        ([form(Recipe("dynamic"), 30 * KIB, 10_000.0)], "float32"),  # smaller by far, and far too slow
        ([form(Recipe("float16"), 85 * KIB, 1000.0)], "float32"),  # less than a fifth
        ([form(Recipe("int8"), 40 * KIB, 1000.0)], "int8 static"),
        ([form(Recipe("int8"), 40 * KIB, 1800.0)], "int8 static"),  # slower, and smaller by more
        ([form(Recipe("int8"), 100 * KIB, 700.0)], "int8 static"),  # faster alone is a gain
        ([form(Recipe("float16"), 55 * KIB, 1000.0), form(Recipe("int8"), 50 * KIB, 1000.0)], "float16"),
        ([form(Recipe("float16"), 55 * KIB, 1000.0), form(Recipe("int8"), 40 * KIB, 1000.0)], "int8 static"),
        ([form(Recipe("int8"), 40 * KIB, 1000.0, 0.895), form(Recipe("int8", True), 41 * KIB, 1100.0)],
         "int8 static, per channel"),  # it keeps more of the metric
        ([form(Recipe("int8"), 40 * KIB, 1000.0, 0.8)], "float32"),  # over the limit
    ],
)  # fmt: skip
def test_balanced_keeps_what_gains_something_real(rivals: list[Form], expected: str) -> None:
    """A fifth of bytes and time together, and never more than twice float32's time."""
    assert kept(BASE, *rivals)[0] == expected


def test_bytes_within_a_block_and_times_that_no_device_feels_are_no_gain() -> None:
    """A model of 3 kB that takes 50 us stays float32, whatever share another form saves."""
    small = form(FLOAT, 6 * KIB, 50.0)
    assert kept(small, form(Recipe("float16"), 3 * KIB, 50.0), form(Recipe("int8"), 6 * KIB, 20.0))[0] == "float32"


def test_size_and_latency_look_at_one_of_the_two() -> None:
    """Whoever asks for the smallest gets it, at any time; and the other way round."""
    slow, fast = form(Recipe("dynamic"), 30 * KIB, 10_000.0), form(Recipe("float16"), 120 * KIB, 500.0)
    assert kept(BASE, slow, fast, prefer="size")[0] == "int8 dynamic"
    assert kept(BASE, slow, fast, prefer="latency")[0] == "float16"


def test_a_form_that_was_asked_for_is_kept_though_it_is_slow() -> None:
    """Among those of its kind."""
    assert kept(BASE, form(Recipe("dynamic"), 30 * KIB, 10_000.0), request="dynamic")[0] == "int8 dynamic"


def test_the_reason_is_one_sentence_without_times() -> None:
    """It stands in the manifest, and equal inputs give equal bytes."""
    _, reason = kept(BASE, form(Recipe("int8"), 40 * KIB, 1000.0))
    assert reason == "int8 static: 60% smaller than float32 and as fast here; no simpler form gains as much"
    _, reason = kept(BASE, form(Recipe("dynamic"), 30 * KIB, 10_000.0))
    assert reason == (
        "float32: no form within --max-drop 0.01 is better by 20% in bytes and time; "
        "int8 dynamic is 70% smaller than float32 and more than twice as slow here"
    )
    assert kept(BASE, form(Recipe("int8"), 40 * KIB, 1.0, 0.5))[1] == (
        "float32: no quantised form is within --max-drop 0.01"
    )


def weighed(recipe: Recipe, size: int, slowness: float, memory: int = 0) -> Form:
    """A form whose time was measured in turns with float32, and its memory."""
    return replace(form(recipe, size, 1000.0 * slowness), slowness=slowness, memory_bytes=memory)


def test_a_time_at_a_limit_counts_against_the_form() -> None:
    """So that a form which is kept is kept on the next run too, whose times differ by a few percent."""
    base = weighed(FLOAT, 100 * KIB, 1.0)
    assert kept(base, weighed(Recipe("int8"), 30 * KIB, 1.85))[0] == "int8 static"
    for slowness in (1.92, 1.98, 2.05):
        assert kept(base, weighed(Recipe("int8"), 30 * KIB, slowness))[0] == "float32"
    # Within a quarter of float32's time a form is as fast; at that limit it is not.
    assert kept(base, weighed(Recipe("int8"), 75 * KIB, 1.1))[0] == "int8 static"
    for slowness in (1.2, 1.24, 1.3):
        assert kept(base, weighed(Recipe("int8"), 75 * KIB, slowness))[0] == "float32"


def test_memory_is_a_gain_beside_bytes_and_time() -> None:
    """Of two forms as large and as fast the one with less memory is kept; a megabyte more or less is no difference."""
    mib = 1 << 20
    base = weighed(FLOAT, 100 * KIB, 1.0, 20 * mib)
    assert kept(base, weighed(Recipe("int8"), 100 * KIB, 1.0, 10 * mib))[0] == "int8 static"
    assert kept(base, weighed(Recipe("float16"), 50 * KIB, 1.0, 40 * mib))[0] == "float32"
    assert kept(base, weighed(Recipe("int8"), 100 * KIB, 1.0, 20 * mib - 1000))[0] == "float32"


def test_a_model_is_loaded_in_a_process_of_its_own_to_learn_its_memory(tmp_path: Path) -> None:
    """64 MB of weights take 64 MB at least; a model of nothing takes little."""
    sizes = {}
    for name, rows in (("small", 4), ("large", 4096)):
        weights = numpy_helper.from_array(np.ones((rows, 4096), np.float32), "w")
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["window", "w"], ["value"])], name,
            [helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", rows])],
            [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", 4096])], [weights],
        )  # fmt: skip
        path = tmp_path / f"{name}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
        done = subprocess.run(
            [sys.executable, footprint.__file__, str(path)],
            capture_output=True,
            text=True,
            check=True,
            timeout=patient(120),
        )
        sizes[name] = int(done.stdout)
    assert sizes["large"] > 64 << 20 > sizes["small"]
