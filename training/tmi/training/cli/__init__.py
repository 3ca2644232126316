"""The commands `tmi train`, `pretrain-text`, `compare` and `audit`, their shared options and progress bars.

The modules parse options and call the lower packages of `tmi.training`.
"""
