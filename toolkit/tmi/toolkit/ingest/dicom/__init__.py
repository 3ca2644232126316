"""DICOM readers: headers, series, slice geometry, CT volumes, SEG and RTSTRUCT masks.

No message contains the value of a patient's DICOM element.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
