"""Confidence intervals, curves and tests for paired classifiers: bootstrap, DeLong, McNemar, Holm.

Each module names its source.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
