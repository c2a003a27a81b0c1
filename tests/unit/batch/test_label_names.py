"""Names of labels in recordings: the bundle's own, or those of the model's classes."""

import pytest

from edge_runtime.batch.evaluate import EvaluationCounts, describe
from edge_runtime.batch.label_names import places_of
from edge_runtime.bundle.manifest import Channel, Input, Manifest, Output
from edge_runtime.errors import CommandError

LABELS, CLASSES = ("walking", "running"), ("0", "1")


@pytest.mark.parametrize(
    ("names", "places"),
    [
        (["walking", "running"], [0, 1]),
        (["0", "1"], [0, 1]),
        (["0.0", "1.0"], [0, 1]),
        (["1"], [1]),
    ],
)
def test_labels_and_classes_are_both_understood(names: list[str], places: list[int]) -> None:
    """Numbers in any writing are the classes that they are."""
    found = places_of(names, LABELS, CLASSES, "d.csv")
    assert [found[name] for name in names] == places


def test_truth_values_are_understood_in_any_writing() -> None:
    """A text that is a label itself comes first."""
    assert places_of(["true", "False"], ("False", "True"), (), "d.csv") == {"true": 1, "False": 0}
    assert places_of(["01", "1"], ("1", "01"), (), "d.csv") == {"01": 1, "1": 0}


@pytest.mark.parametrize(
    ("names", "labels", "classes", "words"),
    [
        (["jumping"], LABELS, CLASSES, "found 'jumping'"),
        (["walking", "1"], LABELS, CLASSES, "found some of both"),
        (["1", "2"], ("1", "2"), ("2", "1"), "meaning another one"),
        (["1"], ("1", "2"), ("0", "1"), "meaning another one"),
    ],
)
def test_what_is_unknown_mixed_or_ambiguous_is_refused(
    names: list[str], labels: tuple[str, ...], classes: tuple[str, ...], words: str
) -> None:
    """A guess would be an accuracy of nothing."""
    with pytest.raises(CommandError, match=words):
        places_of(names, labels, classes, "d.csv")


def manifest() -> Manifest:
    """A classifier whose labels are not the classes of its model."""
    return Manifest(
        name="m",
        version="1.0.0",
        task="classification",
        input=Input(channels=(Channel(name="a"),)),
        output=Output(labels=LABELS, classes=CLASSES),
    )


def test_predict_counts_truth_in_the_model_s_classes() -> None:
    """`predict --label` says the same accuracy whichever names the recordings have."""
    one = EvaluationCounts(judged=10, confusion={"walking": {"walking": 4, "running": 1}, "running": {"running": 5}})
    other = EvaluationCounts(judged=10, confusion={"0": {"walking": 4, "running": 1}, "1": {"running": 5}})
    assert describe(one, manifest()) == describe(other, manifest())
    assert "accuracy 0.9000" in describe(other, manifest())


def test_predict_fails_where_no_truth_is_known() -> None:
    """An accuracy of 0.0000 would look like a bad model; some strange labels among known ones are only named."""
    nothing = EvaluationCounts(judged=2, confusion={"sitting": {"walking": 2}})
    with pytest.raises(CommandError, match=r"--label: labels: expected walking, running .* found 'sitting'"):
        describe(nothing, manifest())
    some = EvaluationCounts(judged=3, confusion={"sitting": {"walking": 2}, "running": {"running": 1}})
    assert "labels that the model does not know: sitting" in describe(some, manifest())
