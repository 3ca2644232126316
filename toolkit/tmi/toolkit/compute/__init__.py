"""Process-level utilities: CPU count, buffer pool, stage timer, suppression of third-party warnings.

The lowest layer of the toolkit: no dependency on cases, images or models.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
