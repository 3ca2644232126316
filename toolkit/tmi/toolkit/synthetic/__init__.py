"""Synthetic cohorts: an abdominal phantom, clinical records and outcomes of a known distribution.

The distribution gives the highest AUC that any model can reach.
"""
