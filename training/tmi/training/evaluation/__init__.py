"""Metrics, calibration, inference with a saved fold, and the reports and summaries of a run.

`statistics` contains confidence intervals and tests: bootstrap, DeLong, McNemar, Holm.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
