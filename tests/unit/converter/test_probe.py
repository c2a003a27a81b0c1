"""Rows beyond the data: what is asked, what a range keeps out, and how a source that refuses a value is heard."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from converter.graph.build import GraphBuilder, serialize
from converter.load.source import Answer
from converter.plan import BundlePlan
from converter.probe import Point, ask_beyond, beyond, probing_rows
from edge_runtime.bundle.manifest import Channel, Input, Target, Window


def plan(*channels: Channel, length: int = 1) -> BundlePlan:
    """A regression of one target."""
    takes = Input(channels=channels, window=Window(length=length, stride=length))
    return BundlePlan("m", "1.0.0", "regression", takes, (), (), (), (Target(name="y"),), None)


def rows(*columns: Any) -> Any:
    """Windows of one reading."""
    return np.stack(columns, axis=1).astype(np.float32)[:, None, :]


def test_sentinels_limits_and_unseen_categories_are_asked_channel_by_channel() -> None:
    """Each row differs from a recorded one in one channel, or in all."""
    rng = np.random.default_rng(0)
    windows = rows(rng.normal(size=50), rng.integers(0, 4, 50))
    asked, points = probing_rows(plan(Channel(name="t"), Channel(name="code")), windows, sentinels=(-77.0,))
    tried = {(point.channel, point.value) for point in points}
    wanted = {-999.0, 0.0, 65535.0, -77.0, float(np.finfo(np.float32).max)}
    assert {(channel, value) for channel in (0, 1, None) for value in wanted} <= tried
    assert {(1, 4.0), (1, -1.0), (1, 0.5)} <= tried
    for row, point in zip(asked, points, strict=True):
        if point.channel is not None:
            other = 1 - point.channel
            assert row[0, point.channel] == np.float32(point.value)
            assert row[0, other] in windows[:, 0, other]


def test_what_a_range_keeps_out_is_not_asked_and_its_ends_are() -> None:
    """A device rejects it, so that the model never sees it."""
    windows = rows(np.linspace(0, 1, 30))
    points = probing_rows(plan(Channel(name="t", range=(-5.0, 300.0))), windows)[1]
    values = {point.value for point in points}
    assert min(values) == -5.0
    assert max(values) == 300.0
    assert {255.0, -1.0, 0.0} <= values


def tree(threshold: float) -> onnx.ModelProto:
    """One split of the second reading of a window of two."""
    builder = GraphBuilder()
    window = builder.input("window", TensorProto.FLOAT, ("N", 2, 1))
    flat = builder.node("Reshape", window, builder.constant([0, 2], np.int64))
    builder.add(
        helper.make_node(
            "TreeEnsembleRegressor", [flat], ["sums"], domain="ai.onnx.ml", n_targets=1,
            nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0],
            nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_values=[threshold, 0.0, 0.0],
            nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
            target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
        )
    )  # fmt: skip
    builder.output("value", "sums", TensorProto.FLOAT, ("N", 1))
    return builder.build("tree")


def source(windows: Any) -> Answer:
    """The tree with its threshold at 0.1 in float32."""
    return Answer(value=np.where(windows[:, 1, :1] <= np.float32(0.1), 1.0, 2.0))


@pytest.mark.parametrize(("threshold", "right"), [(np.float32(0.1), True), (np.nextafter(np.float32(0.1), 1), False)])
def test_a_threshold_is_tried_at_itself_just_below_and_just_above(threshold: Any, right: bool) -> None:
    """A threshold that is off by the last bit is found, however far from it the data lies."""
    windows = np.random.default_rng(0).normal(50.0, 1.0, (40, 2, 1)).astype(np.float32)
    model = tree(float(threshold))
    agreed = plan(Channel(name="t"), length=2)
    probes = ask_beyond(agreed, windows, source, model)
    near, _ = beyond(
        probes, serialize(model), (), 256, ask=source, names=("y",), recorded=windows, expected=source(windows)
    )
    assert (near is None) == right
    if near is not None:
        assert near.point == Point(0, float(threshold), "threshold of a tree")
        assert near.point.in_words(("t",)) == "channel 't' at 0.100000009 (threshold of a tree)"


def test_a_source_that_refuses_a_value_is_heard_and_asked_about_the_rest() -> None:
    """An encoder raises at a category that it does not know; the other rows are answered all the same."""

    def strict(windows: Any) -> Answer:
        if (windows > 1000).any():
            raise ValueError("found unknown categories [65535.0]\nand more")
        return Answer(value=windows.reshape(len(windows), -1)[:, :1])

    probes = ask_beyond(plan(Channel(name="t")), rows(np.linspace(0, 1, 30)), strict)
    assert probes.refused is not None
    assert probes.refused[1] == "found unknown categories [65535.0]"
    assert len(probes.windows) == len(probes.points)
    assert probes.windows.max() <= 1000
    assert probes.expected is not None
    np.testing.assert_array_equal(probes.expected.value, probes.windows[:, 0, :1])


def test_a_form_that_answers_nan_to_what_a_bus_may_send_is_named() -> None:
    """As float16 does with 65535 times anything; a range that leaves the value out takes the fault away."""

    def double(windows: Any) -> Answer:
        return Answer(value=windows.reshape(len(windows), -1)[:, :1].astype(np.float64) * 2)

    builder = GraphBuilder()
    window = builder.input("window", TensorProto.FLOAT, ("N", 1, 1))
    room = builder.node("Sub", builder.constant(60000.0), window)
    flat = builder.node("Reshape", builder.node("Log", room), builder.constant([0, 1], np.int64))
    builder.output("value", flat, TensorProto.FLOAT, ("N", 1))
    probes = ask_beyond(plan(Channel(name="t")), rows(np.linspace(0, 1, 30)), double)
    point = probes.not_finite(serialize(builder.build("log")), (), 256)
    assert point is not None
    assert point.value == 65535.0
    kept_out = ask_beyond(plan(Channel(name="t", range=(0.0, 100.0))), rows(np.linspace(0, 1, 30)), double)
    assert kept_out.not_finite(serialize(builder.build("log")), (), 256) is None
