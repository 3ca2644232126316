"""A bundle as a service: Open Inference Protocol, HTTP and gRPC, a queue of cases, metrics, a server that drains.

It predicts with `tmi.runtime.serving`, and has no preprocessing of its own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
