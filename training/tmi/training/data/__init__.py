"""Training data of a cohort: prepared arrays, splits, batches of a fold, augmentation, duplicate detection.

Scalers and tokenizers are fitted on the inner training part of a fold alone.
"""

import lazy_loader

from tmi.toolkit.compute.telemetry import disable_telemetry

disable_telemetry()
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
