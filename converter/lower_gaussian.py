"""Gaussian process classifiers in operators that onnxruntime has.

skl2onnx writes them with `Solve`, an operator of its own, and with `Erf` in float64. The matrix to solve for is a
constant Cholesky factor, so a product with its inverse is as good; `Erf` is taken in float32, good to 1e-7.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def lower_gaussian(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace such operators in place."""
    if not any(node.op_type == "Solve" for node in model.graph.node):
        return model
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type == "Solve" and node.input[0] in constants:
            matrix = numpy_helper.to_array(constants[node.input[0]])
            name = f"{node.input[0]}_inverse"
            model.graph.initializer.append(numpy_helper.from_array(np.linalg.inv(matrix).astype(matrix.dtype), name))
            nodes.append(helper.make_node("MatMul", [name, node.input[1]], list(node.output), name=node.name))
        elif node.op_type == "Erf":
            narrow, result = f"{node.name}_narrow", f"{node.name}_result"
            nodes += [
                helper.make_node("Cast", list(node.input), [narrow], name=narrow, to=TensorProto.FLOAT),
                helper.make_node("Erf", [narrow], [result], name=node.name),
                helper.make_node("Cast", [result], list(node.output), name=result, to=TensorProto.DOUBLE),
            ]
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model
