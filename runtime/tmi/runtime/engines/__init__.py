"""Inference engines with one interface: ONNX Runtime, OpenVINO, TensorRT, TorchScript, eager.

`registry` is an import-free table. The package of an engine is imported when the engine is opened.
"""
