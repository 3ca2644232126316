"""CT and mask volumes: geometry, NIfTI files read in slabs, and resampling to the network's grid.

Arrays are [D, H, W] in canonical RAS+ orientation, spacing is in mm, CT values are in Hounsfield units.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
