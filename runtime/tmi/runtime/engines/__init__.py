"""Inference engines behind one contract: ONNX Runtime, OpenVINO, TensorRT, TorchScript, eager.

`registry` is an import-free table; an engine's package is imported when it is opened.
"""
