"""Trainable models: one registry, their objectives, and the scikit-learn pipelines.

`registry` is an import-free table. `factory` builds the network or estimator of a row.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
