"""Rich tables that the commands print: predictions, timing, checks, TensorRT plans, benchmark.

Each takes finished results and computes nothing.
"""
