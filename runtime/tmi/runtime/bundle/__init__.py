"""The exported bundle: manifest and its JSON Schema, reading, results of parity checks, signatures.

A bundle is a folder of ONNX, safetensors, plans and JSON; nothing in it is unpickled.
"""
