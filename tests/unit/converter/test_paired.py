"""The difference of two models on the same rows: against scipy, and against intervals that are known."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from converter.evaluate import Truth, metrics_on, right_rows
from converter.load.source import Answer
from converter.paired import PairedDifference, in_words, mcnemar, paired_difference


@pytest.mark.parametrize(
    ("one", "other"), [(0, 0), (0, 1), (1, 1), (0, 5), (3, 14), (14, 3), (60, 40), (700, 800), (40_000, 41_000)]
)
def test_mcnemars_p_is_that_of_the_binomial_test(one: int, other: int) -> None:
    """Exact, in both directions, for few and for many rows."""
    expected = binomtest(one, one + other).pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def _two(n: int, seed: int = 0) -> tuple[Truth, Answer, Answer]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    answered = [np.where(rng.random(n) < share, label, (label + 1) % 3) for share in (0.9, 0.8)]
    return Truth(label=label), Answer(label=answered[0]), Answer(label=answered[1])


def _compared(truth: Truth, one: Answer, other: Answer, **keys: object) -> PairedDifference:
    first, second = metrics_on(one, truth, "classification"), metrics_on(other, truth, "classification")
    assert first is not None
    assert second is not None
    rights = [right_rows(each, truth, "classification", None) for each in (one, other)]
    settings: dict[str, object] = {"groups": None, "overlapping": False, "right": tuple(rights), **keys}
    return paired_difference(
        lambda rows: (first(rows), second(rows)),
        len(truth.label if truth.label is not None else ()),
        **settings,  # type: ignore[arg-type]
    )


def test_the_interval_is_that_of_scipys_paired_bootstrap() -> None:
    """Of the difference of two accuracies, within what two thousand draws allow."""
    truth, one, other = _two(400)
    found = _compared(truth, one, other)
    rights = [np.asarray(each.label == truth.label, float) for each in (one, other)]
    expected = bootstrap(
        (rights[0], rights[1]),
        lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis),
        paired=True, method="percentile", n_resamples=4000, random_state=1,
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)
    assert found.value == pytest.approx(rights[1].mean() - rights[0].mean())
    assert not found.may_be_chance
    only = [int(((rights[0] == a) & (rights[1] == b)).sum()) for a, b in ((1, 0), (0, 1))]
    assert (found.only_first, found.only_second) == tuple(only)
    assert found.p == pytest.approx(binomtest(only[0], sum(only)).pvalue)
    assert found.units == "400 rows"


def test_two_models_that_are_alike_differ_by_chance_as_often_as_stated() -> None:
    """Of eighty pairs of equally good models about one in twenty is taken for different."""
    different = 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        label = rng.integers(0, 2, 200)
        answered = [Answer(label=np.where(rng.random(200) < 0.85, label, 1 - label)) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("converter.paired.RESAMPLES", 200)
            different += not _compared(Truth(label=label), *answered).may_be_chance
    assert 1 <= different <= 12  # 4 are expected; more lies beyond one in a thousand


def test_rows_of_one_recording_do_not_count_as_many() -> None:
    """Forty groups of ten rows that are all alike have the interval of forty rows, and no test for single rows."""
    truth, one, other = _two(40)
    single = _compared(truth, one, other)
    assert truth.label is not None
    assert one.label is not None
    assert other.label is not None
    many = [np.repeat(each, 10) for each in (truth.label, one.label, other.label)]
    groups = np.repeat([f"r{number}" for number in range(40)], 10)
    grouped = _compared(Truth(label=many[0]), Answer(label=many[1]), Answer(label=many[2]), groups=groups)
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high), abs=0.03)
    assert grouped.p is None
    assert grouped.only_first == 10 * (single.only_first or 0)
    blocks = _compared(Truth(label=many[0]), Answer(label=many[1]), Answer(label=many[2]), overlapping=True)
    assert blocks.units == "20 groups or blocks of neighbours"
    assert blocks.high - blocks.low > 0.7 * (single.high - single.low)


@pytest.mark.parametrize("task", ["regression", "anomaly", "multilabel"])
def test_every_metric_has_an_interval_around_its_difference(task: str) -> None:
    """R2, the area under the curve and F1, of a model that is better and one that is worse."""
    rng = np.random.default_rng(3)
    if task == "regression":
        true = rng.normal(size=(300, 2))
        truth = Truth(value=true)
        one, other = (Answer(value=true + rng.normal(0, off, true.shape)) for off in (0.2, 0.6))
    elif task == "anomaly":
        strange = (rng.random(300) < 0.1).astype(np.int64)
        truth = Truth(label=strange)
        one, other = (Answer(score=strange + rng.normal(0, off, 300)) for off in (0.3, 1.5))
    else:
        there = (rng.random((300, 3)) < 0.3).astype(np.int64)
        truth = Truth(labels=there)
        one, other = (Answer(labels=there ^ (rng.random((300, 3)) < off)) for off in (0.02, 0.2))
    first, second = metrics_on(one, truth, task), metrics_on(other, truth, task)  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    found = paired_difference(lambda rows: (first(rows), second(rows)), 300, groups=None, overlapping=False)
    assert found.low < found.value < found.high < 0
    assert (right_rows(one, truth, task, 0.5) is None) == (task == "regression")  # type: ignore[arg-type]


def test_what_may_be_chance_is_named_as_such() -> None:
    """In the words of the command."""
    found = PairedDifference(-0.01, -0.03, 0.01, "60 rows", 3, 2, 1.0)
    first, second = in_words("accuracy", found)
    answered = "accuracy of B less that of A: -0.0100, 95 %: -0.0300 to +0.0100 (paired bootstrap over 60 rows)"
    assert first == f"{answered}: this may be chance"
    assert second == "right by A only: 3 rows, by B only: 2; McNemar's exact p = 1"
    assert "chance" not in in_words("R2", found._replace(high=-0.005, only_first=None))[0]
