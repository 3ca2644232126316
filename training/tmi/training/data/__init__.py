"""A cohort as training data: prepared arrays, splits, batches of a fold, augmentation, vocabulary.

Everything fitted is fitted on a fold's inner training part alone.
"""
