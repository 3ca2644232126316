"""The training objective: cross entropy, SDM alignment, TMFF, and their weighted total.

Formulas follow the paper; each module names its equation.
"""
