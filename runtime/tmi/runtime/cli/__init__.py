"""Commands on a bundle: predict, explain, report, verify, inspect, bench, sign.

They parse options, call the other sub-packages of the runtime, and print tables.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
