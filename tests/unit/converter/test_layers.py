"""The error of each layer of a quantised form, against the float graph."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converter.layers import Layer, added_noise, layer_errors, worst_of
from converter.quantize import Recipe, candidate, products_of, sparing

WIDTH = 4


def chain(count: int, spoilt: int | None = None, scale: float = 100.0) -> onnx.ModelProto:
    """Products one after the other; the weights of one of them reach so far that int8 leaves little of the rest."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], [], "window"
    for index in range(count):
        weight = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        if index == spoilt:
            weight[0, 0] = scale
        constants.append(numpy_helper.from_array(weight.astype(np.float32), f"w{index}"))
        nodes.append(helper.make_node("MatMul", [value, f"w{index}"], [f"y{index}"], name=f"product {index}"))
        value = f"y{index}"
    nodes.append(helper.make_node("Identity", [value], ["value"], name="end"))
    x = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["N", 1, WIDTH])
    y = helper.make_tensor_value_info("value", TensorProto.FLOAT, ["N", 1, WIDTH])
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def rows(count: int = 100) -> Any:
    """Readings of one size."""
    return np.random.default_rng(1).normal(size=(count, 1, WIDTH)).astype(np.float32)


def test_a_layer_is_off_by_what_was_done_to_it() -> None:
    """A second product that is a tenth too large is an error of a hundredth of the power there, and none before."""
    exact, other = chain(3), chain(3)
    weight = numpy_helper.to_array(other.graph.initializer[1]) * np.float32(1.1)
    other.graph.initializer[1].CopyFrom(numpy_helper.from_array(weight, "w1"))
    found = {layer.name: layer for layer in layer_errors(exact, other, rows())}
    assert list(found) == ["product 0", "product 1", "product 2", "end"]
    assert found["product 0"].noise == 0.0
    assert found["product 0"].sqnr_db == np.inf
    assert found["product 1"].sqnr_db == pytest.approx(20.0, abs=0.01)
    assert found["product 2"].sqnr_db == pytest.approx(20.0, abs=0.01)
    added = added_noise(exact, list(found.values()))
    assert added["product 1"] == pytest.approx(0.01, abs=1e-5)
    assert added["product 2"] == pytest.approx(0.0, abs=1e-5)
    assert [layer.name for layer in worst_of(list(found.values()), 1)] == [max(found.values(), key=_noise).name]


def test_a_tensor_is_compared_as_the_next_layer_sees_it() -> None:
    """After its rounding, where it is rounded: the error is that of the steps, on a tensor that is exact before."""
    exact, form = chain(1), chain(1)
    step = np.float32(0.5)
    form.graph.initializer.append(numpy_helper.from_array(np.array(step), "step"))
    del form.graph.node[1:]
    form.graph.node.extend([
        helper.make_node("QuantizeLinear", ["y0", "step"], ["y0_QuantizeLinear_Output"]),
        helper.make_node("DequantizeLinear", ["y0_QuantizeLinear_Output", "step"], ["y0_DequantizeLinear_Output"]),
        helper.make_node("Identity", ["y0_DequantizeLinear_Output"], ["value"]),
    ])  # fmt: skip
    first, last = layer_errors(exact, form, rows())
    assert (first.name, last.name) == ("product 0", "end")
    assert first.noise == last.noise > 0.001


def _noise(layer: Layer) -> float:
    return layer.noise


@pytest.mark.parametrize("recipe", [Recipe("float16"), Recipe("dynamic"), Recipe("int8"), Recipe("int8", True)])
def test_every_form_has_its_layers_measured(recipe: Recipe) -> None:
    """float16 is exact to a thousandth, int8 to a few hundredths, and rounding is seen where it is done."""
    model = chain(3)
    form = onnx.load_model_from_string(candidate(model, recipe, rows()).readable)
    layers = layer_errors(model, form, rows(), together=recipe.method != "dynamic")
    assert {"product 0", "product 1", "product 2"} <= {layer.name for layer in layers}
    low, high = (55.0, 100.0) if recipe.method == "float16" else (25.0, 55.0)
    for layer in layers:
        assert low < layer.sqnr_db < high, layer


def test_of_a_large_model_the_nodes_that_add_the_most_noise_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """More products than are tried one by one: the one that int8 hurts is found all the same."""
    from converter import quantize  # noqa: PLC0415

    monkeypatch.setattr(quantize, "_RANKED_NODES", 3)
    model = chain(8, spoilt=4)
    assert len(products_of(model)) == 8
    recipes = sparing(model, rows(), (), Recipe("int8"))
    assert recipes[0].name == "int8 static, 1 in float"
    assert recipes[0].spared[0] in {"product 4", "product 5"}
    assert max(len(recipe.spared) for recipe in recipes) <= 3
