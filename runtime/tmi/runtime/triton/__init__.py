"""A bundle as a model repository of NVIDIA Triton: a model of its Python backend, and the graphs as models.

The model `tmi` predicts with `tmi.runtime.serving`, and has the inputs and outputs of `tmi.runtime.service`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
