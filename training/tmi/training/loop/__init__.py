"""Training loop: cross-validation, training of one fold with Lightning, checkpoints, devices, memory estimate.

An interrupted run resumes to bit-identical weights on a CPU.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
