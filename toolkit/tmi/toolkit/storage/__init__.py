"""Storage primitives: atomic writes, SHA-256 digests, JSON serialization of dataclasses, disk cache.

They handle bytes, folders and dataclasses, independent of their content.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
