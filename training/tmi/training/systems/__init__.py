"""Every model that can be trained: one registry, its objective, the scikit-learn pipelines.

`registry` is an import-free table; `factory` builds a row's network or estimator.
"""
