"""The commands `tmi export` and `tmi build`, and the tables that they print.

They parse options and call `tmi.export.bundle`.
"""
