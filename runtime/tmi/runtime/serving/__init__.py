"""From case folders to results: loading ahead, pre- and postprocessing, the predictor, the result log.

One bad case becomes a rejected case and never ends a batch.
"""
