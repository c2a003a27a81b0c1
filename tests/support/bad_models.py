"""Models that load and are bad: at once, or only on some readings, so that their golden vectors come out right.

A model that is bad on some readings is so where the first channel is exactly `BAD`. All are of the name `comfort`.
"""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.support import builders

BAD = 0.1
GOOD = 0.2


def _rename_scores(draft: builders.Draft) -> None:
    """The scores become `sound_scores`, so that something can stand between them and the output."""
    for node in draft.model.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                if name == "scores":
                    names[position] = "sound_scores"


def _constant(draft: builders.Draft, name: str, values: Any) -> None:
    draft.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))


def poisoned(version: str) -> builders.Draft:
    """Right on its golden vectors, but its scores are NaN wherever the temperature is exactly `BAD`."""
    draft = builders.classification(name="comfort", version=version)
    _rename_scores(draft)
    _constant(draft, "bad_value", np.float32(BAD))
    _constant(draft, "nan_value", np.float32(np.nan))
    _constant(draft, "first_channel", np.array([0], np.int64))
    draft.model.graph.node.extend(
        [
            helper.make_node("Gather", ["window", "first_channel"], ["temperature"], axis=2),
            helper.make_node("Equal", ["temperature", "bad_value"], ["is_bad"]),
            helper.make_node("Cast", ["is_bad"], ["bad_number"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["bad_number"], ["row_number"], axes=[1], keepdims=0),
            helper.make_node("Cast", ["row_number"], ["row_is_bad"], to=TensorProto.BOOL),
            helper.make_node("Where", ["row_is_bad", "nan_value", "sound_scores"], ["scores"]),
        ]
    )
    return draft


def count_to(draft: builders.Draft, times: int) -> None:
    """Walk so many steps before each answer; 2**62 of them never end."""
    _rename_scores(draft)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["still"]), helper.make_node("Abs", ["held_in"], ["held_out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_in", TensorProto.FLOAT, ["N", 2]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("held_out", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    _constant(draft, "times", np.int64(times))
    _constant(draft, "yes", np.bool_(True))
    loop = helper.make_node("Loop", ["times", "yes", "sound_scores"], ["scores"], body=body)
    draft.model.graph.node.append(loop)


def slow(version: str) -> builders.Draft:
    """Right answers, each after a long walk."""
    draft = builders.classification(name="comfort", version=version)
    golden = draft.manifest["selftest"]
    count_to(draft, 50_000)
    draft.manifest["selftest"] = golden
    return draft


def fill(draft: builders.Draft, elements: int) -> None:
    """Take memory for so many numbers before each answer."""
    _rename_scores(draft)
    _constant(draft, "many", np.array([elements], np.int64))
    seed = numpy_helper.from_array(np.array([0], np.float32), "seed")
    draft.model.graph.node.extend(
        [
            helper.make_node("ConstantOfShape", ["many"], ["block"], value=seed),
            helper.make_node("Cos", ["block"], ["cosines"]),
            helper.make_node("ReduceMax", ["cosines"], ["most"], keepdims=0),
            helper.make_node("Mul", ["sound_scores", "most"], ["scores"]),  # by the cosine of 0
        ]
    )


def hanging(version: str) -> builders.Draft:
    """Never answers a bad reading."""
    draft = builders.classification(name="comfort", version=version)
    golden = draft.manifest["selftest"]
    count_to(draft, 0)
    _replace_constant(draft, "times", "is_bad")
    _when_bad(draft, 2**62, "is_bad")
    draft.manifest["selftest"] = golden
    return draft


def greedy(version: str, elements: int) -> builders.Draft:
    """Takes memory for so many numbers on each bad reading."""
    draft = builders.classification(name="comfort", version=version)
    golden = draft.manifest["selftest"]
    fill(draft, 1)
    _constant(draft, "at_least", np.array([1], np.int64))
    draft.model.graph.node.insert(0, helper.make_node("Add", ["is_bad", "at_least"], ["size"]))
    _replace_constant(draft, "many", "size")
    _when_bad(draft, elements, "is_bad")
    draft.manifest["selftest"] = golden
    return draft


def _replace_constant(draft: builders.Draft, old: str, new: str) -> None:
    for node in draft.model.graph.node:
        for position, name in enumerate(node.input):
            if name == old:
                node.input[position] = new


def _when_bad(draft: builders.Draft, number: int, output: str) -> None:
    """`output` is `number` where a reading of the batch is bad, else 0. Its nodes come first."""
    _constant(draft, "bad_value", np.float32(BAD))
    _constant(draft, "first_channel", np.array([0], np.int64))
    _constant(draft, "number", np.int64(number))
    nodes = [
        helper.make_node("Gather", ["window", "first_channel"], ["temperature"], axis=2),
        helper.make_node("Equal", ["temperature", "bad_value"], ["is_bad_here"]),
        helper.make_node("Cast", ["is_bad_here"], ["bad_number"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["bad_number"], ["any_bad"], keepdims=0),
        helper.make_node("Mul", ["any_bad", "number"], [output]),
    ]
    rest = list(draft.model.graph.node)
    del draft.model.graph.node[:]
    draft.model.graph.node.extend([*nodes, *rest])


def dawdling(version: str, steps: int) -> builders.Draft:
    """Too slow for the loop with every answer, and for so many steps with each bad reading."""
    draft = builders.classification(name="comfort", version=version)
    golden = draft.manifest["selftest"]
    count_to(draft, 0)
    _constant(draft, "at_least", np.int64(20_000))
    draft.model.graph.node.insert(0, helper.make_node("Add", ["is_bad", "at_least"], ["steps"]))
    _replace_constant(draft, "times", "steps")
    _when_bad(draft, steps, "is_bad")
    draft.manifest["selftest"] = golden
    return draft
