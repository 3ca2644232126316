"""Rich tables printed by the commands: predictions, timing, parity checks, TensorRT plans, benchmark.

They format finished results.
"""
