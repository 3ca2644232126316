"""Training data of a cohort: prepared arrays, splits, batches of a fold, augmentation, duplicate detection.

Scalers and tokenizers are fitted on the inner training part of a fold alone.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry
from tmi.toolkit.compute.user import provide_user

disable_telemetry()
provide_user()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
