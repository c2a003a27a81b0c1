"""Which form is kept among those that keep the metric, and the sentence that says why."""

from typing import Any

import numpy as np
import pytest

from converter.choice import Form, choose
from converter.evaluate import Judgement
from converter.load.source import Answer
from converter.quantize import Candidate, Recipe, Request
from converter.session import Speed

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
