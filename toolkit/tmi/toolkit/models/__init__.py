"""The networks: encoders, TMI-CLNet, the baselines, and one registry of what each of them uses.

The only room of the toolkit that imports torch; `registry` itself does not.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
