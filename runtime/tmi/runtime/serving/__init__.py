"""Prediction service: case folders in, results out (loader, pre- and postprocessing, predictor, result log).

A bad case becomes a `RejectedCase` and does not stop the batch.
"""
