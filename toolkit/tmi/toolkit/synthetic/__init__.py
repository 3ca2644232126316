"""Synthetic cohorts: an abdominal phantom, clinical records, and outcomes from a known distribution.

The distribution determines the highest AUC that any model can reach.
"""
