"""Results of a prediction as DICOM objects, to be filed in the study that the case came from.

They are written with highdicom: a structured report of the prediction and a segmentation of the liver.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
