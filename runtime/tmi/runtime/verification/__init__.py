"""Evidence that an engine matches the validated model: golden inputs, parity checks, self-test, `verify`.

The export, the start-up of an engine and `tmi verify` run the same checks.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
