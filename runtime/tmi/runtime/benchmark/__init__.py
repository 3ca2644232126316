"""Timing of engines: a synthetic case, worker processes, interleaved rounds, medians and ratios.

Engines take turns within one run, so that drift of the machine affects all of them alike.
"""
