"""Trainable models: one registry, their objectives, and the scikit-learn pipelines.

`registry` is an import-free table. `factory` builds the network or estimator of a row.
"""
