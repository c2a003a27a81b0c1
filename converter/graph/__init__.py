"""ONNX graphs: built, made smaller without changing an answer, and models lowered to standard operators."""
