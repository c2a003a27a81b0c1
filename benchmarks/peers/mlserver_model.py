"""A target: MLServer with a runtime for onnxruntime, which it has none of, as its documentation writes a custom one.

`mlserver start FOLDER` runs it by the two files of settings that `benchmarks/on_demand.py` writes into a folder.
"""

import onnxruntime as ort
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from mlserver.utils import get_model_uri


class OnnxModel(MLModel):  # type: ignore[misc]
    """A model of one input, `window`."""

    async def load(self) -> bool:
        """Load."""
        self.session = ort.InferenceSession(await get_model_uri(self._settings))
        self.names = [each.name for each in self.session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Predict."""
        window = NumpyCodec.decode_input(payload.inputs[0])
        found = self.session.run(self.names, {"window": window})
        outputs = [NumpyCodec.encode_output(name, values) for name, values in zip(self.names, found, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
