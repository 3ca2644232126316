"""The `tmi` command: the table of all commands, and those that need the toolkit alone.

Only command modules print or exit; they import what is heavy inside their functions.
"""
