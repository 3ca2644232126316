"""Command line of `tmi`: the table of all commands, and the commands that need only the toolkit.

Only command modules print or exit. They import heavy packages inside their functions.
"""
