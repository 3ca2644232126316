"""The commands `tmi train`, `pretrain-text`, `compare` and `audit`, their shared options and progress.

They parse options and call the rooms below.
"""
