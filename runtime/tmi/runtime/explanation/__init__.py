"""Explanations of a prediction: XGrad-CAM maps, attributions, attention, and sanity checks of the maps.

Needs torch and the eager weights of a run or bundle.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
