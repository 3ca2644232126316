"""The comparison of models on one cohort: plan, runner, tables of the paper, report.

An interrupted comparison goes on where it stopped.
"""
