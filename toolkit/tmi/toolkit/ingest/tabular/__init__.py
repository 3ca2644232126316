"""Spreadsheet import: CSV and Excel reader, mapping to the clinical schema, row conversion, import report.

A cell that cannot be converted rejects its row, not the table.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
