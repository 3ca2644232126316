"""Confidence intervals, curves and tests for paired classifiers: bootstrap, DeLong, McNemar, Holm.

Each module names its source.
"""
