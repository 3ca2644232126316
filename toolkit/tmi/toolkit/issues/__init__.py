"""`Issue`, the one record of a problem of an input, and the table of all codes.

Errors carry issues; documents, pages and journals are written from them. The table has severity and meaning of a code.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
