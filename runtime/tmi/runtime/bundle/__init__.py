"""The exported bundle: manifest and its JSON Schema, reading, results of parity checks, signatures.

A bundle is a folder of ONNX, safetensors, TensorRT plans and JSON files. No file of it is unpickled.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
