"""Metrics of predictions, calibration, inference of a saved fold, reports and summaries of a run.

`statistics` holds intervals and tests: bootstrap, DeLong, McNemar, Holm.
"""
