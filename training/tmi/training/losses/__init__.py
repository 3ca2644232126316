"""Training objective: cross entropy, SDM alignment, TMFF, and their weighted sum.

Formulas follow the paper. Each module names its equation.
"""
