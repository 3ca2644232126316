"""The 1,781 radiomic features: names, extraction (pyradiomics and a faster path), tables, scaler, cache.

The fast path is held to pyradiomics by tests; a table computed elsewhere is converted by name.
"""
