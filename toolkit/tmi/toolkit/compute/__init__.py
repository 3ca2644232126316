"""Process-level utilities: CPU count, buffer pool, stage timer, suppression of third-party warnings.

The lowest layer of the toolkit: no dependency on cases, images or models.
"""
