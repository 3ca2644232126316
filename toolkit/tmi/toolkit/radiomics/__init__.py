"""The 1,781 radiomic features: names, extraction (a fast path and pyradiomics as the reference), tables, scaler, cache.

Tests compare the fast path with pyradiomics to 1e-6. Tables computed elsewhere are imported by feature name.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
