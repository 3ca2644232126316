"""Converters from hospital files to case folders: DICOM series, SEG, RTSTRUCT, NIfTI, NRRD, MetaImage, spreadsheets.

The output follows the case format of `tmi.toolkit.cases`. Input that cannot be read reliably is rejected.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
