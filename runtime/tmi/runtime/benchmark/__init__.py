"""Timing of engines: a synthetic case, worker processes, interleaved rounds, medians and ratios.

Engines take turns in one run, so that drift of the machine hits all alike.
"""
