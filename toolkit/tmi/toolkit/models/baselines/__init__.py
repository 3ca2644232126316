"""The networks that TMI-CLNet is compared with: SimpleFF, HFBSurv, MMD.

Sources and differences are in docs/systems.md.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
