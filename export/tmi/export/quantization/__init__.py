"""INT8: calibration on training cases, quantisation of the encoders, search of the layers that stay in float32, audit.

A quantised graph holds float32 layers between pairs of QuantizeLinear and DequantizeLinear (QDQ), which OpenVINO, ONNX
Runtime and TensorRT read alike. Scales are symmetric: zero points are 0.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry

disable_telemetry()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
