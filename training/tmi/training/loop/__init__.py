"""Training loop: cross-validation, training of one fold with Lightning, checkpoints, devices, memory estimate.

An interrupted run resumes to bit-identical weights on a CPU.
"""
