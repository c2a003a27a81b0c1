"""One `.onnx` file: what it says, whether it may be run, and the only caller of onnxruntime."""
