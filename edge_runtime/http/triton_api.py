"""`config` of a model in the form of Triton Inference Server, for clients that read it before their requests."""

from typing import Any

from edge_runtime.bundle.manifest import INPUT_NAME, Manifest
from edge_runtime.bundle.uncertainty import answer_ports
from edge_runtime.http.scorer import MAX_WINDOWS
from edge_runtime.http.served_model import Served

_OUTPUT_TYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def config(served: Served) -> dict[str, Any]:
    """The document of `/v2/models/M/config`.

    `max_batch_size` is the limit of one call of the model; larger requests are accepted too, and scored in parts.
    """
    manifest = served.manifest
    return {
        "name": served.name,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": MAX_WINDOWS,
        "input": [_input(name, dims) for name, dims in _inputs(manifest)],
        "output": [_output(name, kind, dims) for name, kind, dims in _outputs(manifest)],
        "batch_input": [],
        "batch_output": [],
        "optimization": {"priority": "PRIORITY_DEFAULT"},
        "instance_group": [
            {"name": served.name, "kind": "KIND_CPU", "count": 1, "gpus": [], "secondary_devices": [], "profile": []}
        ],
        "default_model_filename": served.model.bundle.path.name,
        "parameters": {"version": {"string_value": manifest.version}, "task": {"string_value": manifest.task}},
        "model_warmup": [],
    }


def _inputs(manifest: Manifest) -> list[tuple[str, tuple[int, ...]]]:
    return [(INPUT_NAME, manifest.input.tensor_shape), *((state.input, state.shape) for state in manifest.state)]


def _outputs(manifest: Manifest) -> list[tuple[str, str, tuple[int, ...]]]:
    return [
        *((name, _OUTPUT_TYPES[port.dtype], port.shape) for name, port in answer_ports(manifest).items()),
        *((state.output, "TYPE_FP32", state.shape) for state in manifest.state),
    ]


def _input(name: str, dims: tuple[int, ...]) -> dict[str, Any]:
    return {
        "name": name,
        "data_type": "TYPE_FP32",
        "format": "FORMAT_NONE",
        "dims": list(dims),
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": name != INPUT_NAME,
    }


def _output(name: str, kind: str, dims: tuple[int, ...]) -> dict[str, Any]:
    # Triton's configuration has no scalars: an output of one number a row has the dimension 1, reshaped to none.
    shape: dict[str, Any] = {"dims": list(dims)} if dims else {"dims": [1], "reshape": {"shape": []}}
    return {"name": name, "data_type": kind, **shape, "label_filename": "", "is_shape_tensor": False}
