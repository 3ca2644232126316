"""From arrays to probabilities: token padding, encoders once for all folds, fusion, fold ensemble.

It runs on any engine, and caches the embeddings of an encoder that folds share.
"""
