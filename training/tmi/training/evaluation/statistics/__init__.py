"""Confidence intervals and tests for paired classifiers: bootstrap, DeLong, McNemar, Holm, curves.

Each module names its source.
"""
