"""From a case folder to the network's inputs: the one pipeline of training, prediction and services.

Nothing fitted is applied here: scalers and tokenizers belong to the folds.
"""
