"""Metrics, calibration, inference with a saved fold, and the reports and summaries of a run.

`statistics` contains confidence intervals and tests: bootstrap, DeLong, McNemar, Holm.
"""
