"""Inference engines with one interface: ONNX Runtime, OpenVINO, TensorRT, TorchScript, eager.

`registry` is an import-free table. The package of an engine is imported when the engine is opened.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
