"""Pre-training of the text encoder on synthetic records that are sampled from the schema.

No patient's record takes part.
"""
