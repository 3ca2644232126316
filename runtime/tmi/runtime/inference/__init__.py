"""From arrays to probabilities: token padding, encoders once for all folds, fusion, fold ensemble.

It runs on any engine, and caches the embeddings of an encoder that folds share.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
