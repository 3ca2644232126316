"""The exported bundle: manifest and its JSON Schema, reading, results of parity checks, signatures.

A bundle is a folder of ONNX, safetensors, TensorRT plans and JSON files. No file of it is unpickled.
"""
