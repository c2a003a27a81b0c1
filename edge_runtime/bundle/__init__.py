"""One `.onnx` file: its facts, the checks before it runs, and the only caller of onnxruntime."""
