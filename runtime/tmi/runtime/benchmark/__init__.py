"""Timing of engines: a synthetic case, worker processes, interleaved rounds, medians and ratios.

Engines take turns within one run, so that drift of the machine affects all of them alike.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
