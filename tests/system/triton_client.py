"""Run by the Python of another environment, in which `tritonclient[http]` is installed; see `test_http_triton.py`.

Asks a server everything that the client can ask of one model, in every form, and prints `conforms` at the end.
"""

import itertools
import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def main(url: str, model: str, version: str) -> None:
    """Go through the client's questions; an assertion or an exception ends it."""
    client = triton.InferenceServerClient(url)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert client.is_model_ready(model, version)
    assert not client.is_model_ready("nothing")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_repository_index()[0]["name"] == model
    for each in ("", version):
        metadata = client.get_model_metadata(model, each)
        assert metadata["versions"] == [version]
        assert metadata["inputs"] == [{"name": "window", "datatype": "FP32", "shape": [-1, 1, 2]}]
    windows = np.random.default_rng(3).normal(size=(300, 1, 2)).astype(np.float32)
    answers = []
    for binary_in, binary_out, packed, unpacked in itertools.product([False, True], [False, True], *[_PACKINGS] * 2):
        given = triton.InferInput("window", windows.shape, "FP32")
        given.set_data_from_numpy(windows, binary_data=binary_in)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "scores")]
        for outputs in (wanted, None):
            found = client.infer(
                model,
                [given],
                outputs=outputs,
                model_version=version,
                request_id="a-1",
                request_compression_algorithm=packed,
                response_compression_algorithm=unpacked,
            )
            head = found.get_response()
            assert (head["id"], head["model_name"], head["model_version"]) == ("a-1", model, version)
            answers.append((found.as_numpy("label").tobytes(), found.as_numpy("scores").tobytes()))
    assert len(set(answers)) == 1, "the forms differ"
    wide = triton.InferInput("window", windows.shape, "FP64")
    wide.set_data_from_numpy(windows.astype(np.float64))
    assert client.infer(model, [wide]).as_numpy("scores").tobytes() == answers[0][1]
    config = client.get_model_config(model, version)
    assert [(each["name"], each["data_type"], each["dims"]) for each in config["input"]] == [
        ("window", "TYPE_FP32", [1, 2])
    ]
    (counted,) = client.get_inference_statistics(model)["model_stats"]
    assert counted["inference_count"] == len(windows) * (len(answers) + 1)
    assert counted["inference_stats"]["success"]["count"] == len(answers) + 1
    bad = triton.InferInput("window", [1, 2, 1], "FP32")
    bad.set_data_from_numpy(np.zeros((1, 2, 1), np.float32))
    refused = ""
    try:
        client.infer(model, [bad])
    except InferenceServerException as error:
        refused = error.message()
    assert "expected [n, 1, 2]" in refused, refused
    sys.stdout.write(f"conforms: {len(answers)} forms of a request\n")


_PACKINGS = (None, "gzip", "deflate")

if __name__ == "__main__":
    main(*sys.argv[1:])
