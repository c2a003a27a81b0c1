"""A feature transformer alone, lowered to a graph that can be asked."""

from typing import Any

from converter.features import lower_audio
from converter.features import lower_statistics as lower_features
from converter.graph.build import serialize
from converter.session import session_of


def lowered(features: Any, double: bool) -> Any:
    """A session of the features alone, fed `x` in float64 or float32; only standard operators may be in it."""
    from skl2onnx import convert_sklearn  # noqa: PLC0415
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType  # noqa: PLC0415

    lower_features.register()
    lower_audio.register()
    kind = DoubleTensorType if double else FloatTensorType
    shape = features.window_shape_ if features.takes_windows_ else (features.n_features_in_,)
    model = convert_sklearn(
        features, initial_types=[("x", kind([None, *shape]))], target_opset={"": 17, "ai.onnx.ml": 3}
    )
    assert {node.domain for node in model.graph.node} == {""}
    return session_of(serialize(model))
