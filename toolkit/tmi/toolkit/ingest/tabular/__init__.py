"""Tables: reading CSV and Excel, the mapping to the clinical schema, conversion row by row, the report.

A cell that cannot be converted rejects its row and never the table.
"""
