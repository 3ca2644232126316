"""Out-of-distribution detection: statistics of what a fold was trained on, and p-values of new cases against them.

`tmi.training` fits the statistics; this room needs numpy and safetensors alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
