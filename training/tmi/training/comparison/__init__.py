"""Comparison of models on one cohort: plan of the runs, runner, tables of the paper, report.

An interrupted comparison continues where it stopped.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
