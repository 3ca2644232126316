"""Preprocessing of a case folder into network inputs, shared by training, prediction and services.

Fitted transforms (scaler, tokenizer) are not applied here; they belong to the folds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
