"""Case and cohort format: file names of a case folder, case id, patient, label, and provenance record.

This package locates files; higher layers read their content.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
