"""Training objective: cross entropy, SDM alignment, TMFF, and their weighted sum.

Formulas follow the paper. Each module names its equation.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
