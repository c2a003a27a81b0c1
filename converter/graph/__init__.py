"""ONNX graphs: build them, shrink them without changing an answer, and lower models to standard operators."""
