"""Checks of an export: weights and epsilons in the files, reference outputs, validation of each engine.

A bundle is written only if all checks pass.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
