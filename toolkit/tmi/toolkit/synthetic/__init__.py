"""Synthetic cohorts: an abdominal phantom, clinical records, and outcomes from a known distribution.

The distribution determines the highest AUC that any model can reach.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
