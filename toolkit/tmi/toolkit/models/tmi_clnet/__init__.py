"""TMI-CLNet of the paper: intra-modality aggregation, TCAF, TMFF fusion, DenseNet head.

Equation numbers are those of the paper.
"""
