"""Checks of an export: weights and epsilons in the files, reference outputs, acceptance of each engine.

A bundle whose checks fail is not written.
"""
