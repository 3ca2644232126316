"""Pre-training of the text encoder on synthetic records that are sampled from the clinical schema.

No patient data is used.
"""
