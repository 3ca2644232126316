"""Trainable models: their objectives, and the scikit-learn pipelines.

`factory` builds the network or estimator of a row of `tmi.toolkit.model_registry`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
