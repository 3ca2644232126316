"""Commands `tmi export` and `tmi build`, and the tables that they print.

The commands parse options and call `tmi.export.bundle`.
"""
