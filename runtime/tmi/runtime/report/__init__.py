"""HTML report: slices with the map, contributions, warnings and provenance of each case.

Each page is one self-contained file that loads nothing from elsewhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
