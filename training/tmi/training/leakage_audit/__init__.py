"""Leakage audit of a finished run: the values in its files are recomputed from its predictions, cohort and weights.

The audit detects held-out cases that influenced training, model selection or calibration.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
