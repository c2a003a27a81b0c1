"""The first sentence of a report, against shares and intervals worked out on paper or by scipy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from converter.assessment import Assessment, Judged, assess, interval
from converter.cli import main
from converter.evaluate import Truth, judge
from converter.load.source import Answer
from edge_runtime.bundle.manifest import Task


def judged(
    task: Task, truth: Truth, answer: Answer | None, *, source: float | None = None, threshold: float | None = None
) -> Judged:
    """A form that lost nothing, unless a source is given."""
    kept = 0.0 if answer is None else judge(answer, answer, truth, task, threshold=threshold).metric
    return Judged(
        task=task,
        truth=truth,
        answer=answer,
        form="int8 static" if answer is not None else "int8: the metric drops by 0.2, more than --max-drop 0.01",
        metric="accuracy",
        source=kept if source is None else source,
        kept=kept,
        max_drop=0.01,
        labels=("ok", "worn", "loose"),
        targets=[("power", "kW"), ("flow", "")],
        threshold=threshold,
    )


def labels(right: list[int], output_of: list[int], source: float | None = None) -> Assessment:
    """Of a classification."""
    answer = Answer(label=np.array(output_of), scores=np.zeros((len(output_of), 3), np.float32))
    return assess(judged("classification", Truth(label=np.array(right)), answer, source=source))


def test_the_interval_is_wilsons() -> None:
    """Compared with scipy's."""
    for right, rows in ((0, 5), (5, 5), (3, 7), (97, 100), (1200, 1234)):
        expected = binomtest(right, rows).proportion_ci(0.95, method="wilson")
        assert interval(right, rows) == pytest.approx((expected.low, expected.high), abs=1e-4)


def test_a_model_that_beats_the_most_frequent_class_is_good_enough() -> None:
    """The sentence has what was found, the interval, the alternative and the loss."""
    found = labels([0] * 60 + [1] * 40, [0] * 58 + [1] * 42, source=0.985)
    assert found.sentence == (
        "Good enough: int8 static finds 98.0% of 100 rows right (93.0% to 99.4% with 95 %), where always answering "
        '"ok" finds 60.0%, and it loses 0.0050 of the source\'s accuracy (0.9850), of 0.01 allowed; '
        'no row judges "loose".'
    )


def test_a_model_that_always_says_the_same_is_not_good_enough() -> None:
    """Nine rows in ten right is worth nothing where nine rows in ten are of one class."""
    found = labels([0] * 90 + [1] * 10, [0] * 100)
    assert found.kind == "bad"
    assert 'it never finds "worn" (10 rows)' in found.why


def test_a_class_that_is_never_found_is_no_good_enough_model() -> None:
    """However good the others are; fewer than five rows prove nothing."""
    assert labels([0] * 40 + [1] * 40 + [2] * 6, [0] * 40 + [1] * 46).kind == "bad"
    assert labels([0] * 40 + [1] * 40 + [2] * 4, [0] * 40 + [1] * 44).kind == "good"


def test_a_model_worse_than_the_most_frequent_class_is_not_good_enough() -> None:
    """Six in ten right where seven in ten are of one class."""
    assert labels([0] * 70 + [1] * 30, [0] * 45 + [1] * 25 + [1] * 15 + [0] * 15).kind == "bad"


def test_too_few_rows_decide_nothing() -> None:
    """Eight of ten right where five of ten are of one class: the interval holds five of ten (44 % to 96 %)."""
    found = labels([0] * 5 + [1] * 5, [0] * 4 + [1] * 5 + [0])
    assert found.kind == "open"
    assert found.sentence.startswith("Not shown: ")
    assert "too few" in found.why


def test_rows_of_one_class_decide_nothing() -> None:
    """There is nothing to tell apart."""
    assert labels([0] * 50, [0] * 50).kind == "open"


def test_a_regression_is_held_against_the_mean_by_its_worst_target() -> None:
    """One exact target does not make up for one that is worse than the mean."""
    rng = np.random.default_rng(3)
    right = rng.normal(size=(200, 2))
    exact = Answer(value=(right + rng.normal(scale=0.1, size=right.shape)).astype(np.float32))
    found = assess(judged("regression", Truth(value=right), exact))
    assert found.kind == "good"
    assert "kW in power" in found.why or "in flow (" in found.why
    noise = Answer(value=np.column_stack((right[:, 0], rng.normal(size=200))).astype(np.float32))
    found = assess(judged("regression", Truth(value=right), noise))
    assert found.kind == "bad"
    off = float(np.sqrt(np.mean((right[:, 1] - noise.value[:, 1]) ** 2)))  # type: ignore[index]
    assert f"off by {off:.3g} in flow" in found.why


def test_a_regression_on_few_rows_decides_nothing() -> None:
    """Five rows, four of them nearer than the mean, one far off."""
    right = np.array([[0.0, 1], [1, 2], [2, 3], [3, 4], [4, 5]])
    answer = Answer(value=(right + np.array([[0.1], [0.1], [-0.1], [0.1], [-2.5]])).astype(np.float32))
    assert assess(judged("regression", Truth(value=right), answer)).kind == "open"


def test_an_anomaly_is_judged_by_what_its_threshold_finds() -> None:
    """18 of 20 strange rows, 4 false alarms in 400; nothing is good that never raises an alarm."""
    score = np.array([3.0] * 18 + [0.5] * 2 + [2.5] * 4 + [0.1] * 396, np.float32)
    truth = Truth(label=np.array([1] * 20 + [0] * 400))
    found = assess(judged("anomaly", truth, Answer(score=score), threshold=2.0))
    assert found.kind == "good"
    assert "finds 18 of 20 strange rows and raises 4 false alarms in 400 ordinary ones" in found.why
    assert assess(judged("anomaly", truth, Answer(score=score), threshold=9.0)).kind == "bad"
    assert assess(judged("anomaly", truth, Answer(score=-score), threshold=-4.0)).kind == "bad"


def test_without_truth_nothing_is_shown() -> None:
    """The form is faithful; whether the source is right is another matter."""
    answer = Answer(label=np.array([0, 1]), scores=np.zeros((2, 3), np.float32))
    found = assess(judged("classification", Truth(), answer))
    assert found.kind == "open"
    assert "answers as the source does" in found.why


def test_no_form_at_all_is_not_good_enough() -> None:
    """The reason is that of the search."""
    found = assess(judged("classification", Truth(label=np.array([0, 1])), None))
    assert found.sentence == "Not good enough: int8: the metric drops by 0.2, more than --max-drop 0.01."


def test_the_report_begins_with_it(tmp_path: Path) -> None:
    """Before any table: a model of noise is called so at the top of its page."""
    import skops.io  # noqa: PLC0415
    from sklearn.dummy import DummyClassifier  # noqa: PLC0415

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 3)).astype(np.float32), (rng.random(300) < 0.3).astype(int)
    skops.io.dump(DummyClassifier().fit(x, y), tmp_path / "m.skops")
    np.savez(tmp_path / "d.npz", x=x, y=y)
    page = tmp_path / "proof.html"
    arguments = ["build", str(tmp_path / "m.skops"), "--data", str(tmp_path / "d.npz"), "-o", str(tmp_path / "m.onnx")]
    assert main([*arguments, "--report", str(page)]) == 0
    text = page.read_text()
    assert text.index("Not good enough: ") < text.index("<table")
    assert "it never finds &quot;1&quot;" in text


def test_of_several_labels_the_worst_one_decides() -> None:
    """Beside always saying that it is there, or not; a label that is never found is named."""
    rng = np.random.default_rng(0)
    right = (rng.random((400, 3)) < [0.5, 0.2, 0.0]).astype(np.int64)
    often = np.where(rng.random((400, 3)) < [0.02, 0.1, 0.0], 1 - right, right)
    never = np.stack([right[:, 0], np.zeros(400, np.int64), right[:, 2]], axis=1)

    def output_of(found: Any, truth: Any = right) -> Assessment:
        return assess(
            Judged(
                task="multilabel", truth=Truth(labels=truth), answer=Answer(labels=found, scores=found * 1.0),
                form="float32", metric="F1 over all labels", source=0.9, kept=0.9, max_drop=0.01,
                labels=["hot", "wet", "loud"],
            )
        )  # fmt: skip

    good = output_of(often)
    share, base = (often[:, 1] == right[:, 1]).mean(), 1 - right[:, 1].mean()
    assert good.kind == "good"
    assert f'least of "wet": it is right in {share:.1%} of 400 rows' in good.why
    assert f"always answering that it is not there is right in {base:.1%}" in good.why
    assert good.why.endswith('; no row judges "loud"')
    assert output_of(never).kind == "bad"
    assert 'it never finds "wet"' in output_of(never).why
    assert output_of(often[:10], right[:10]).kind == "open"
    assert output_of(right * 0, right * 0).kind == "open"
    assert output_of(1 - right[:, [0, 0, 0]], right[:, [0, 0, 0]]).kind == "bad"
