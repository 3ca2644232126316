"""Spreadsheet import: CSV and Excel reader, mapping to the clinical schema, row conversion, import report.

A cell that cannot be converted rejects its row, not the table.
"""
