"""TMI-CLNet of the paper: intra-modality aggregation, TCAF, TMFF fusion, DenseNet head.

Equation numbers are those of the paper.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
