"""Checks of an export: weights and epsilons in the files, reference outputs, validation of each engine.

A bundle is written only if all checks pass.
"""
