"""Comparison of models on one cohort: plan of the runs, runner, tables of the paper, report.

An interrupted comparison continues where it stopped.
"""
