"""Preprocessing of a case folder into network inputs, shared by training, prediction and services.

Fitted transforms (scaler, tokenizer) are not applied here; they belong to the folds.
"""
