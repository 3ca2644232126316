"""TensorRT: FP16 conversion of ONNX graphs, its simulation on a CPU, mixed-precision search, engine building.

TensorRT takes the precision of each layer from the graph. The FP16 error is therefore measurable without a GPU.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
