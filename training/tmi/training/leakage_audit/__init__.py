"""The audit of a finished run: what its files claim is computed again from cohort and weights.

It looks for held-out cases in anything that was fitted.
"""
