"""An ONNX file of given nodes, for loaders and tasks that need a graph of their own."""

from pathlib import Path
from typing import Any

import onnx
from onnx import helper, numpy_helper


def save(path: Path, nodes: list[Any], inputs: Any, outputs: Any, *, constants: dict[str, Any]) -> Path:
    """Save a model of these parts at opset 17; `inputs` and `outputs` hold name, type and shape of each."""
    infos = [[helper.make_tensor_value_info(*each) for each in part] for part in (inputs, outputs)]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "m", infos[0], infos[1], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
