"""Prediction service: case folders in, results out (loader, pre- and postprocessing, predictor, result log).

A bad case becomes a `RejectedCase` and does not stop the batch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
