"""Graph files of a run's networks: partition at the encoders, ONNX and TorchScript writers.

`registry` is the table of the artefact kinds that an export can write.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
