"""The training loop: cross-validation, one fold with Lightning, checkpoints, devices, memory estimate.

A run that is interrupted is resumed bit for bit.
"""
