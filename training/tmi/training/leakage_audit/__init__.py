"""Leakage audit of a finished run: the values in its files are recomputed from its predictions, cohort and weights.

The audit detects held-out cases that influenced training, model selection or calibration.
"""
