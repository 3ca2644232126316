"""Pre-training of the text encoder on synthetic records that are sampled from the clinical schema.

No patient data is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
