"""Rich tables printed by the commands: predictions, timing, parity checks, TensorRT plans, benchmark.

They format finished results.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
