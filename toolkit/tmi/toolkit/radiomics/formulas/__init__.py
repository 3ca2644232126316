"""Formulas of the texture and shape features, on counted matrices and on a mask.

The definitions, and the order of operations, are those of pyradiomics 3.0.1 (van Griethuysen 2017,
doi:10.1158/0008-5472.CAN-17-0339; BSD 3-clause, `NOTICE`). Tests require equal values to the last bit.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
