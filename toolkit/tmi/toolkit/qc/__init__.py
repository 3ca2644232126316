"""Quality checks of a case (images, Hounsfield units, mask, clinical record, radiomics), and repairs.

Each check has a code and a severity, and each finding a fix. `check_registry` lists all checks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
