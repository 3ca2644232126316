"""Training data of a cohort: prepared arrays, splits, batches of a fold, augmentation, duplicate detection.

Scalers and tokenizers are fitted on the inner training part of a fold alone.
"""
